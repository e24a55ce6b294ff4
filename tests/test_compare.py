"""`fedglm compare`: the same federation under several codecs, from outside."""

import pytest
from command_line import rows_of

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
    assert "No privacy guarantee" in out
    assert max(map(len, out.splitlines()[:-1])) <= 100


def test_the_json_holds_the_table_and_resume_keeps_finished_runs(fedglm, finished, compared):
    _, folder, _ = compared
    before = {path: path.stat().st_mtime_ns for label in LABELS for path in (folder / label).rglob("*")}
    found = fedglm(*options(compared, "--resume", "--json")).json
    assert {path: path.stat().st_mtime_ns for label in LABELS for path in (folder / label).rglob("*")} == before
    assert found["tolerance"] == 1.2
    assert [codec["label"] for codec in found["codecs"]] == LABELS
    dense, wide, narrow = found["codecs"]
    assert found["target_loss"] == pytest.approx(1.2 * dense["loss"])
    assert dense["rounds_to_target"] <= 3
    assert dense["bytes"] > wide["bytes"] > narrow["bytes"] > 0
    for codec in found["codecs"]:
        rows = rows_of(folder / codec["label"])
        reached = next((row["round"] for row in rows if row["loss"] <= found["target_loss"]), None)
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
        (["--codecs", "dense-fp32,topk-sign@7"], "update.density = 7.0"),
        (["--codecs", "dense-fp32,int8@0.1"], "int8 sends every coordinate: leave @0.1 out"),
        (["--codecs", "int8,int8"], "a codec is named twice"),
        (["--codecs", "dense-fp32,"], "codec"),
        (["--codecs", "int8", "--tolerance", "0.5"], "0.5"),
        (["--codecs", "int8", "--tolerance", "nan"], "nan"),
        (["--codecs", "int8", "--epsilon", "1"], "differential privacy"),
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
