"""`fedglm lighten --device`: judged by the table of another machine, said so everywhere, and no other device taken."""

import hashlib
import json

import pytest
from device_law import SLOW_READER, make_device
from light_plans import write_plan, write_text
from saved_models import save_model

import fedglm as api
from fedglm.autoglm.light.device.target_device import HELD_OUT_ERROR
from fedglm.autoglm.light.plan.lighten_plan import LightenPlan
from fedglm.autoglm.light.plan.plan_files import read_settings_file
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.inference.validation import validate

pytestmark = pytest.mark.usefixtures("unsynced", "unrendered")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a public text and a device that reads codes fast and multiplies them slowly."""
    folder = tmp_path_factory.mktemp("device")
    save_model("language", folder / "model")
    write_text(folder / "public.jsonl", rows=16)
    make_device(SLOW_READER).save(folder / "edge.json")
    make_device(SLOW_READER, name="Kettle").save(folder / "other.json")
    return folder


def planned(place, path, **goals):
    device = place / "edge.json"
    known = {"path": str(device), "sha256": hashlib.sha256(device.read_bytes()).hexdigest()}
    return write_plan(place / "model", place / "public.jsonl", path, device=known, tolerance=10, **goals)


@pytest.fixture(scope="module")
def made(fedglm, place):
    plan = planned(place, place / "plan.toml", max_latency_ms=1000, size_ratio=4)
    run = fedglm(
        *("lighten", place / "model", "--config", plan, "--device", place / "edge.json"),
        *("--out", place / "light", "--no-comparison", "--json"),
    )
    assert run.code == 0, run.err
    return run.json


def test_times_are_predicted_and_said_to_be(made, place):
    said = "predicted for Toaster 3000, Linux 6.1 by its table"
    assert made["times"].startswith(said)
    assert f"{HELD_OUT_ERROR.decode_ms:.1%} a token" in made["times"]
    assert made["device"] == "Toaster 3000, Linux 6.1"
    page = (place / "light.html").read_text()
    assert said in page
    assert "prefill in fp32, decode in int4" in page
    assert json.loads((place / "light.json").read_text()) == made
    release = open_release(place / "light", trust=Trust.unverified())
    facts = release.manifest.facts
    assert said in facts.device
    assert "any time on Toaster 3000, Linux 6.1" in facts.not_measured
    told = {one.name: one.value for one in facts.measures}
    row = made["rows"][-1]
    assert told["ms a token, predicted"] == pytest.approx(row["decode_ms"], rel=1e-4)
    assert told["ms a prompt of 32, predicted"] == pytest.approx(row["prefill_ms"], rel=1e-4)
    # Those of the law, whatever this machine takes.
    table = make_device(SLOW_READER).latency
    assert made["rows"][0]["decode_ms"] == pytest.approx(table.predict(release.model.config, past=32).decode_ms)


def test_formats_of_prefill_and_decode_are_chosen_apart(fedglm, made, place, monkeypatch):
    monkeypatch.setattr(validate, "measure_use", lambda *_, **__: None)  # a process whose times are those of here
    assert made["formats"] == {"prefill": "fp32", "decode": "int4"}
    assert sorted(open_release(place / "light", trust=Trust.unverified()).skeletons) == ["decode", "prefill"]
    assert fedglm("validate", place / "light", "--unverified").code == 0


@pytest.mark.parametrize(
    ("goals", "arguments", "says"),
    [
        ({"max_latency_ms": 5}, ("--device", "other.json"), "for another device than"),
        ({"max_latency_ms": 5}, ("--device", "gone.json"), "fedglm device probe"),
        ({"max_memory_bytes": 2**31}, (), "name at most 1074MB"),
    ],
)
def test_a_plan_runs_for_its_own_device_alone(fedglm, place, goals, arguments, says, tmp_path):
    plan = planned(place, tmp_path / "plan.json", **goals)
    where = [place / each if each.endswith(".json") else each for each in arguments]
    line = fedglm("lighten", place / "model", "--config", plan, "--out", tmp_path / "light", *where).line()
    assert says in line
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_for_this_machine_takes_no_device(fedglm, place, tmp_path):
    plan = write_plan(place / "model", place / "public.jsonl", tmp_path / "plan.json", size_ratio=4)
    done = fedglm("lighten", place / "model", "--config", plan, "--device", place / "edge.json")
    assert "the plan is for this machine" in done.line()


def test_a_goal_is_judged_by_the_table(place, tmp_path):
    """No machine is as slow as this table says; nothing is within the goal then, and nothing is written."""
    table = make_device(SLOW_READER).latency
    config = json.loads((place / "model" / "config.json").read_text())
    dense = table.predict(config, past=32).decode_ms
    plan = planned(place, tmp_path / "plan.json", max_latency_ms=dense / 1000)
    made = api.lighten(place / "model", config=plan, out=tmp_path / "light", no_comparison=True)
    assert (made.chosen, made.folder, made.record["met"]) == (None, None, False)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.slow
def test_a_plan_names_its_device_by_hash_and_repeats_to_the_same_bits(fedglm, place, tmp_path):
    common = ("lighten", place / "model", "--text", place / "public.jsonl", "--steps", "4", "--tolerance", "1000%")
    targets = ("--target", "latency=1.2x,size=4x", "--device", place / "edge.json")
    assert fedglm(*common, *targets, "--plan", tmp_path / "plan.toml").code == 0
    plan = read_settings_file(LightenPlan, tmp_path / "plan.toml")
    assert plan.device.sha256 == hashlib.sha256((place / "edge.json").read_bytes()).hexdigest()
    assert fedglm(*common, *targets, "--out", tmp_path / "first", "--no-comparison").code == 0
    again = ("--config", tmp_path / "plan.toml", "--out", tmp_path / "again", "--no-comparison")
    assert fedglm("lighten", place / "model", *again).code == 0
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
