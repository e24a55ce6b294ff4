"""`fedglm compare`: the same federation under several codecs, from outside."""

import tomllib

import pytest
from command_line import rows_of

pytestmark = pytest.mark.usefixtures("unrendered")

CODECS = "dense-fp32,topk-fp16@0.2,topk-fp16@0.05"
LABELS = ["dense-fp32", "topk-fp16@0.2", "topk-fp16@0.05"]


@pytest.fixture(scope="module")
def compared(fedglm, finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "runs"
    result = fedglm("compare", finished.toml, "--codecs", CODECS, "--tolerance", "1.2", "--out", folder)
    assert result.code == 0, result.err
    return finished.toml, folder, result


def options(compared, *more):
    toml, folder, _ = compared
    return ("compare", toml, "--codecs", CODECS, "--tolerance", "1.2", "--out", folder, *more)


def test_a_run_folder_for_each_codec_and_one_page(compared):
    _, folder, _ = compared
    assert sorted(path.name for path in folder.iterdir()) == sorted([*LABELS, "report.html"])
    for label in LABELS:
        assert len(rows_of(folder / label)) == 3
        assert (folder / label / "summary.json").is_file()
    page = (folder / "report.html").read_text()
    assert all(label in page for label in LABELS)


def test_the_table_names_each_codec_and_the_target(compared):
    out = compared[2].out
    assert all(any(line.strip().startswith(label) for line in out.splitlines()) for label in LABELS)
    assert "1.2 x that of dense-fp32" in out
    assert "dense-fp32: FedAvg as Flower sends it" in out
    assert "No privacy guarantee" in out
    assert max(map(len, out.splitlines()[:-1])) <= 100


def test_the_json_holds_the_table_and_resume_keeps_finished_runs(fedglm, finished, compared):
    _, folder, _ = compared
    before = {path: path.stat().st_mtime_ns for label in LABELS for path in (folder / label).rglob("*")}
    comparison = fedglm(*options(compared, "--resume", "--json")).json
    assert {path: path.stat().st_mtime_ns for label in LABELS for path in (folder / label).rglob("*")} == before
    assert comparison["tolerance"] == 1.2
    assert [codec["label"] for codec in comparison["codecs"]] == LABELS
    dense, wide, narrow = comparison["codecs"]
    assert comparison["target_loss"] == pytest.approx(1.2 * dense["loss"])
    assert dense["rounds_to_target"] <= 3
    assert dense["bytes"] > wide["bytes"] > narrow["bytes"] > 0
    for codec in comparison["codecs"]:
        rows = rows_of(folder / codec["label"])
        reached = next((row["round"] for row in rows if row["loss"] <= comparison["target_loss"]), None)
        assert codec["rounds_to_target"] == reached
        if reached is not None:
            spent = sum(row["uplink_bytes"] + row["downlink_bytes"] for row in rows[:reached])
            assert codec["bytes_to_target"] == spent
    # The same scenario as the other tests': the same bits, whatever ran before in the process.
    assert narrow["loss"] == finished.summary["loss"]


def test_resume_does_the_runs_that_are_missing(fedglm, compared):
    toml, folder, _ = compared
    more = fedglm("compare", toml, "--codecs", "dense-fp32,int8", "--out", folder, "--resume", "--json", "--quiet")
    assert more.code == 2  # there is no --quiet
    more = fedglm("compare", toml, "--codecs", "dense-fp32,int8", "--out", folder, "--resume", "--json").json
    assert [codec["label"] for codec in more["codecs"]] == ["dense-fp32", "int8"]
    assert len(rows_of(folder / "int8")) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--codecs", "dense-fp32,topk-sing"], "did you mean topk-sign"),
        (["--codecs", "dense-fp32,topk-sign@x"], "a density is a number"),
        (["--codecs", "dense-fp32,topk-sign@7"], "update.density = 7: "),
        (["--codecs", "dense-fp32,int8@0.1"], "int8 has no density: leave @0.1 out"),
        (["--codecs", "int8,int8"], "a codec is named twice"),
        (["--codecs", "dense-fp32,"], "codec"),
        (["--codecs", "topk-fp16,topk-fp16@0.05"], "topk-fp16 and topk-fp16@0.05 are the same run"),
        (["--codecs", "topk-sign@densty=0.1"], "did you mean density"),
        (["--codecs", "int8@trainings.local_steps=3"], "did you mean training?"),
        (["--codecs", "int8@federation.seed=3"], "--seeds"),
        (["--codecs", "int8", "--seeds", "7,x"], "whole numbers with commas"),
        (["--codecs", "int8", "--seeds", "7,7"], "a seed is named twice"),
        (["--codecs", "int8", "--seeds", "7,-8"], "federation.seed = -8"),
        (["--codecs", "int8", "--seeds", "7,8", "--seed", "7"], "exclude each other"),
        (["--codecs", "int8", "--seeds", "7,8", "--set", "federation.seed=9"], "exclude each other"),
        (["--codecs", "int8", "--tolerance", "0.5"], "0.5"),
        (["--codecs", "int8", "--tolerance", "nan"], "nan"),
        (["--codecs", "int8", "--epsilon", "0"], "greater than or equal to 0.05"),
        (["--codecs", "int8", "--resume"], "--resume needs --out"),
        (["--codecs", "int8", "--engine", "rya"], "inline or ray"),
        (["--codecs", "int8", "--data", "missing.csv"], "there is no such file"),
    ],
)
def test_mistakes_are_one_line(fedglm, tiny, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert said in fedglm("compare", tiny, *arguments).line()
    assert not list(tmp_path.glob("runs/*/*"))


def test_a_folder_that_holds_runs_is_refused_without_resume(fedglm, compared):
    assert "already holds a run" in fedglm(*options(compared)).line()


@pytest.mark.slow
def test_several_seeds_several_rounds_and_a_resume_with_one_seed_more(fedglm, finished, tmp_path):
    codecs = "dense-fp32,topk-fp16@density=0.2+rounds=4+downlink.codec=int8"
    label = "topk-fp16@0.2+rounds=4+downlink.codec=int8"
    out = tmp_path / "runs"
    command = ("compare", finished.toml, "--codecs", codecs, "--out", out, "--json", "--rounds", "2")
    comparison = fedglm(*command, "--seeds", "7,8").json
    assert comparison["seeds"] == [7, 8]
    assert [codec["rounds"] for codec in comparison["codecs"]] == [2, 4]
    assert [run["seed"] for run in comparison["codecs"][1]["runs"]] == [7, 8]
    scenario = tomllib.loads((out / label / "seed-8" / "scenario.toml").read_text())
    assert scenario["federation"]["seed"] == 8
    assert (scenario["update"]["density"], scenario["downlink"]["codec"]) == (0.2, "int8")
    more = fedglm(*command, "--seeds", "8,9", "--resume").json
    assert more["codecs"][0]["runs"][0] == comparison["codecs"][0]["runs"][1]
    assert sorted(path.name for path in (out / label).iterdir()) == ["seed-7", "seed-8", "seed-9"]
    assert "no run" in fedglm(*command, "--resume").line()  # one seed: the folder is not a run's own


def test_seeds_do_not_go_into_the_folder_of_a_single_run(fedglm, compared):
    assert "the run of a single seed" in fedglm(*options(compared, "--seeds", "7,8", "--resume")).line()


def test_the_help_teaches_by_example(fedglm):
    out = " ".join(fedglm("compare", "--help").out.split())
    assert out.count("fedglm compare") >= 3
    assert "NAME@key=value+key=value" in out
