"""`fedglm lighten` from outside, on a small language model and a file of public text."""

import html
import json
import os
import signal
import subprocess
import time

import pytest
from command_line import COMMAND
from light_plans import write_plan, write_text
from saved_models import save_model

from fedglm.autoglm.light.plan.families import make_recipe
from fedglm.autoglm.light.plan.goals import Goals
from fedglm.autoglm.light.plan.lighten_plan import LightenPlan, TextSettings, train_for
from fedglm.autoglm.light.plan.plan_files import write_settings
from fedglm.autoglm.light.pruning.surgery import read_shape
from fedglm.autoglm.light.search.sources import load_dense
from fedglm.inference.model import LiteModel
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.privacy.keys.signing import SigningKey
from fedglm.simulations.held_out_records import load_held_out

pytestmark = pytest.mark.usefixtures("unsynced", "unrendered")

KEYS = ("bytes", "reference_bytes", "size_ratio", "loss", "control_loss", "loss_rise", "stages")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """The user's own cache is left alone."""
    folder = tmp_path_factory.mktemp("xdg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "fedglm" / "light"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model("language", tmp_path_factory.mktemp("models") / "language")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "public.jsonl", rows=24)


@pytest.fixture(scope="module")
def options(text):
    return ("--text", text, "--steps", "6")


@pytest.fixture(scope="module")
def made(fedglm, model, text, tmp_path_factory):
    """A release, with the key that signed it and what the command said."""
    folder = tmp_path_factory.mktemp("light")
    key = SigningKey.create(folder / "key.pem")
    plan = write_plan(model, text, folder / "plan.toml", size_ratio=5, tolerance=10)
    run = fedglm(
        *("lighten", model, "--config", plan, "--out", folder / "light", "--no-comparison"),
        *("--signing-key", folder / "key.pem", "--json"),
    )
    assert run.code == 0, run.err
    return folder, key, run.json


def test_json_has_the_figures(made):
    _, _, record = made
    assert all(record[key] is not None for key in KEYS)
    assert record["size_ratio"] == pytest.approx(record["reference_bytes"] / record["bytes"])
    assert record["size_ratio"] >= 5
    assert record["loss_rise"] == pytest.approx(record["loss"] / record["control_loss"] - 1)


def test_every_byte_of_the_folder_counts(made):
    folder, _, record = made
    sizes = {path.name: path.stat().st_size for path in (folder / "light").iterdir()}
    assert sizes == record["files"]
    assert sum(sizes.values()) == record["bytes"]


def test_the_record_and_the_page_lie_beside_it(made):
    folder, _, record = made
    assert json.loads((folder / "light.json").read_text()) == record
    page = (folder / "light.html").read_text()
    assert "not measured" in page
    assert f"{record['size_ratio']:.1f}" in page


def test_a_second_run_takes_what_the_first_trained_and_says_so(fedglm, model, made, own_cache, tmp_path):
    folder, _, record = made
    assert (record["models_from_cache"], record["models_made"]) == (0, 3)
    assert {path.suffix for path in own_cache.iterdir()} <= {".json", ".safetensors", ""}
    again = fedglm(
        *("lighten", model, "--config", folder / "plan.toml", "--out", tmp_path / "light", "--no-comparison"),
        *("--signing-key", folder / "key.pem"),
    )
    assert again.code == 0, again.err
    assert "3 of 3 trained models came from the cache" in " ".join(again.out.split())
    assert "adapt to the public text" not in again.err
    for path in (folder / "light").iterdir():
        assert path.read_bytes() == (tmp_path / "light" / path.name).read_bytes(), path.name


def test_what_the_verification_of_the_layers_came_to_is_in_the_record(made):
    _, _, record = made
    below = [layer["name"] for layer in record["layers"] if layer["cosine"] < record["repair"]["min_cosine"]]
    assert record["repair"]["deviating"] == below
    assert record["repair"]["outcome"]


def test_a_diagnosis_is_json_and_a_page(fedglm, model, text, tmp_path):
    record = fedglm("lighten", model, "--diagnose", "--text", text, "--json", "--out", tmp_path / "page.html").json
    groups = [row for row in record["rows"] if row["kind"] == "ffn"]
    assert [row["layer"] for row in groups] == [0, 1]
    assert {row["ranks"]["removal"] for row in groups} == {0, 1}
    assert {part["kind"] for part in record["redundancy"]} == {"heads", "channels"}
    assert all(rule.keys() == {"rule", "holds", "found"} for rule in record["rules"])
    page = html.unescape((tmp_path / "page.html").read_text())
    assert all(rule["found"] in page for rule in record["rules"])
    assert "Redundant heads and channels" in page
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_simulation_s_own_held_out_records_are_measured_where_they_are_declared_public(fedglm, finished, tmp_path):
    """The tiny run's records are a file's; its plan has one candidate that takes a second."""
    dense = load_dense(finished.folder)
    plan = LightenPlan(
        model_sha256=dense.sha256(),
        goals=Goals(size_ratio=1, tolerance=10),
        text=TextSettings(source="model", max_sequences=16),
        training=train_for(1),
        candidates=(make_recipe("int8", train_for(1), shape=read_shape(dense.model)),),
    )
    for name, declared in (("declared", True), ("not", False)):
        text = plan.text.model_copy(update={"sites_data_are_public": declared})
        write_settings(plan.model_copy(update={"text": text}), tmp_path / "plan.toml")
        run = ("lighten", finished.folder, "--config", tmp_path / "plan.toml", "--out", tmp_path / name)
        record = fedglm(*run, "--no-comparison", "--json").json
        rows = {row["name"]: row for row in record["rows"]}
        assert list(rows) == ["dense", "control, trained as long", "chosen: int8"]
        page = (tmp_path / f"{name}.html").read_text()
        if declared:
            summary = json.loads((finished.folder / "summary.json").read_text())
            left_out = int((record["own_records"] or "0").split()[0])  # a table of few values repeats itself by chance
            assert rows["dense"]["own_count"] == len(load_held_out(finished.folder, declared_public=True)) - left_out
            assert left_out or rows["dense"]["own_loss"] == pytest.approx(summary["loss"], rel=1e-6)
            assert rows["control, trained as long"]["own_loss_rise"] == 0
            assert all(row["own_count"] == rows["dense"]["own_count"] > 0 for row in rows.values())
            assert "On the run's own held-out records" in html.unescape(page)
        else:
            assert {row["own_loss"] for row in rows.values()} == {None}
            assert "--sites-data-are-public" in record["own_records"]
            assert "Not measured on the run's own held-out records" in html.unescape(page)


def test_the_release_is_valid_on_this_machine(fedglm, made):
    folder, key, _ = made
    done = fedglm("validate", folder / "light", "--key", key.public.hex, "--json")
    assert done.code == 0, done.err


def test_the_release_is_signed_and_runs(made):
    folder, key, _ = made
    release = open_release(folder / "light", trust=Trust.in_keys([key.public]))
    assert release.verified
    used = LiteModel.from_pretrained(folder / "light", keys=[key.public.hex])
    assert isinstance(used.generate("the patient", max_length=20), str)


@pytest.mark.slow
def test_a_search_compares_with_each_means_alone_and_repeats(fedglm, model, options, tmp_path):
    key = tmp_path / "key.pem"
    SigningKey.create(key)
    common = ("lighten", model, "--signing-key", key, "--no-cache")
    searched = ("--target", "size=6x", "--tolerance", "1000%", "--min-cosine", "0.5", *options)
    assert fedglm(*common, *searched, "--plan", tmp_path / "plan.yaml").code == 0
    assert "min_cosine: 0.5" in (tmp_path / "plan.yaml").read_text()
    record = fedglm(*common, *searched, "--out", tmp_path / "first", "--json").json
    names = [row["name"] for row in record["rows"]]
    assert names[:5] == ["dense", "control, trained as long", "int8", "int4", "ternary"]
    assert names[-1].startswith("chosen")
    assert fedglm(*common, "--config", tmp_path / "plan.yaml", "--out", tmp_path / "again").code == 0
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.slow
@pytest.mark.parametrize("target", ["size=60x", "size=8x"])
def test_past_the_goals_the_frontier_is_printed(fedglm, model, options, target, tmp_path):
    """60x is beyond any cut; at 8x the loss of so short a training is beyond the tolerance."""
    done = fedglm("lighten", model, "--target", target, "--tolerance", "0%", "--out", tmp_path / "light", *options)
    assert done.code == 1
    assert "Nothing is released" in done.out
    assert "the frontier" in done.out
    assert list(tmp_path.iterdir()) == []


def test_past_the_tolerance_nothing_is_written(fedglm, model, text, tmp_path):
    plan = write_plan(model, text, tmp_path / "plan.json", size_ratio=60, tolerance=0.001)
    done = fedglm("lighten", model, "--config", plan, "--out", tmp_path / "light", "--no-comparison")
    assert done.code == 1
    assert "Nothing is released" in done.out
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_of_another_model_is_refused(fedglm, made, tmp_path):
    folder, _, _ = made
    other = save_model("texts", tmp_path / "texts")
    done = fedglm(
        *("lighten", other, "--config", folder / "plan.toml", "--out", tmp_path / "light"),
        *("--text-field", "text", "--label-field", "text"),
    )
    assert (done.code, "another model" in done.err) == (2, True)
    assert not (tmp_path / "light").exists()


def test_a_classifier_needs_the_field_of_its_class(fedglm, text, tmp_path):
    other = save_model("texts", tmp_path / "texts")
    done = fedglm("lighten", other, "--target", "size=4x", "--text", text)
    assert (done.code, "--label-field" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--target size=20x"),
        (("--target", "size=twenty"), "size=20x"),
        (("--target", "size=2x"), "name a file with --text"),
        (("--target", "size=2x", "--text", "gone.jsonl"), "gone.jsonl"),
        (
            ("--target", "size=2x", "--config", "plan.toml"),
            "it does not go with --target",
        ),
        (("--config", "gone.toml"), "gone.toml"),
        (("--target", "size=2x", "--cache", "here", "--no-cache"), "leave one out"),
        (("--target", "size=2x", "--cache", "/tmp"), "others may write there"),  # noqa: S108 - that is the mistake
        (("--diagnose", "--out", "page.docx"), ".html"),
    ],
)
def test_mistakes_are_one_line(fedglm, model, arguments, says, tmp_path):
    done = fedglm("lighten", model, "--out", tmp_path / "light", *arguments)
    assert done.code == 2
    assert says in done.err
    assert done.err.count("fedglm: ") == 1
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_an_interrupt_keeps_the_best_so_far(model, text, tmp_path):
    """Ctrl-C in the control's training ends it; what can be made with what there is is made, and said."""
    command = [str(COMMAND), "lighten", str(model), "--text", str(text)]
    command += ["--target", "size=6x", "--tolerance", "1000%", "--steps", "100000", "--out", str(tmp_path / "light")]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        for line in process.stderr:
            if "adapt to the public text" in line:
                time.sleep(2)
                process.send_signal(signal.SIGINT)
                break
        out, _ = process.communicate(timeout=200)
    assert process.returncode in (0, 1), out
    assert "stopped early" in out


@pytest.mark.slow
def test_after_a_kill_the_next_run_takes_what_was_whole(fedglm, model, made, tmp_path):
    """SIGKILL while the candidate is made: the adapted model and the control are there, and the release is the same."""
    folder, _, _ = made
    common = ["lighten", model, "--config", folder / "plan.toml", "--out", tmp_path / "light", "--no-comparison"]
    common += ["--cache", tmp_path / "cache", "--signing-key", folder / "key.pem"]
    command = [str(COMMAND), *map(str, common)]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=env) as process:
        for line in process.stderr:
            if line.startswith("int4:"):
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    (tmp_path / "cache" / f".{'0' * 64}.json.half").write_text("what a kill in the middle of writing leaves")
    record = fedglm(*common, "--json").json
    assert record["models_from_cache"] == 2
    assert record["models_made"] == 1
    assert not list((tmp_path / "cache").glob(".*"))
    for path in (folder / "light").iterdir():
        assert path.read_bytes() == (tmp_path / "light" / path.name).read_bytes(), path.name
