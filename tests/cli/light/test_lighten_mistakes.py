"""What is wrong with a command, a file or a folder is one line, told before anything trains, and leaves nothing."""

import errno
import json
import tomllib

import pytest
from device_law import make_device
from light_plans import write_plan, write_text
from saved_models import save_model

import fedglm as api
from fedglm.core.files import StorageError
from fedglm.inference.release import folder as release_folder

BIG = "9" * 400


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    save_model("language", folder / "model")
    write_text(folder / "public.jsonl", rows=16)
    write_plan(folder / "model", folder / "public.jsonl", folder / "plan.toml", size_ratio=4, tolerance=10)
    make_device().save(folder / "edge.json")
    (folder / "occupied").mkdir()
    (folder / "occupied" / "letter").write_text("dear")
    (folder / "taken.json").write_text("{}")
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    yield place
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


GOAL = ("--target", "size=4x")
TEXT = ("--text", "public.jsonl")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--target", f"size={BIG}MB"), "so large a number"),
        (("--target", f"memory={BIG}GB"), "so large a number"),
        (("--target", "latency=0ms"), "max_latency_ms = 0.0"),
        ((*GOAL, "--tolerance", "nan%"), "a percentage such as 5%"),
        ((*GOAL, "--device", "gone.json"), "gone.json: No such file or directory; fedglm device probe"),
        ((*GOAL, "--device", "plan.toml"), "plan.toml is no device file"),
        ((*GOAL, "--device", "."), "fedglm device probe"),
        ((*GOAL, "--device", "edge.json", "--target", "memory=4GB"), "more than edge.json has"),
        ((*GOAL, *TEXT, "--seed", "-1"), "--seed -1"),
        ((*GOAL, *TEXT, "--steps", "1" + "0" * 30), "--steps 1000"),
        ((*GOAL, *TEXT, "--min-cosine", "nan"), "--min-cosine nan"),
        ((*GOAL, "--cache", "trials", "--no-cache"), "leave one out"),
        ((*GOAL, "--out", "occupied"), "holds something else than a light release"),
        ((*GOAL, "--out", "public.jsonl"), "holds something else than a light release"),
        ((*GOAL, "--out", "public.jsonl/light"), "Not a directory"),
        ((*GOAL, "--out", "/proc/light"), "cannot write /proc/light"),
        ((*GOAL, "--out", "a" * 300), "File name too long"),
        ((*GOAL, "--out", "taken"), "taken.json is there already"),
        ((*GOAL, "--out", "edge", "--device", "edge.json"), "edge.json is read, and would be written over"),
        ((*GOAL, "--plan", "edge.json", "--device", "edge.json"), "edge.json is read, and would be written over"),
        ((*GOAL, "--plan", "plan.txt"), "a plan is written as .toml"),
        ((*GOAL, "--plan", "public.jsonl/plan.toml"), "Not a directory"),
        (("--config", "plan.toml", "--seed", "0"), "does not go with --seed"),
        (("--config", "plan.toml", "--steps", "9", "--tolerance", "5%"), "does not go with --tolerance, --steps"),
        (("--config", "plan.toml", "--plan", "other.toml"), "does not go with --config"),
        (("--config", "edge.json"), "model_sha256 is missing"),
        (("--config", "plan.toml", "--signing-key", "gone.pem"), "gone.pem"),
        (("--diagnose", *GOAL), "does not go with --target"),
        (("--diagnose", "--text", "gone.jsonl"), "gone.jsonl"),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_mistake_is_one_line(fedglm, arguments, says):
    done = fedglm("lighten", "model", *arguments)
    assert done.code == 2
    assert says in done.err
    assert done.err.count("fedglm: ") == 1


def set_key(tree, path, value):
    *way, last = path
    for step in way:
        tree = tree[step]
    tree[last] = value


WEIGHTS = ("candidates", 0, "quantization", "weights")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("gols",), {}, "unknown key gols: did you mean goals?"),
        (("goals", "size_ratio"), "twenty", "goals.size_ratio = 'twenty'"),
        (("goals",), {}, "a goal limits size, latency or memory"),
        (("goals", "tolerance"), float("nan"), "goals.tolerance = nan"),
        (("seed",), -1, "seed = -1"),
        (("device",), "edge.json", "device = 'edge.json'"),
        (("device",), {"path": "edge.json", "sha256": "0" * 64}, "for another device than edge.json"),
        (("model_sha256",), "0" * 64, "the plan is of another model"),
        (("text", "source"), "gone.jsonl", "gone.jsonl"),
        (("candidates", 0, "name"), "", "candidates.0.name"),
        ((*WEIGHTS, "codes"), "int9", "'int9'"),
        ((*WEIGHTS, "block"), 7, "candidate 'int4' of the plan: model.layers.0"),
        (("candidates", 0, "pruning"), {"budget": {"parameters": 1}}, "candidate 'int4' of the plan: the budget"),
    ],
)
def test_a_plan_edited_by_hand_is_checked_before_anything_trains(fedglm, here, path, value, says, tmp_path):
    tree = tomllib.loads((here / "plan.toml").read_text())
    set_key(tree, path, value)
    (tmp_path / "plan.json").write_text(json.dumps(tree))
    done = fedglm("lighten", "model", "--config", tmp_path / "plan.json", "--out", tmp_path / "light")
    assert done.code == 2
    assert says in done.err
    assert "train" not in done.err
    assert [one.name for one in tmp_path.iterdir()] == ["plan.json"]


def test_a_record_is_not_written_over_the_plan(fedglm, here, tmp_path):
    (tmp_path / "light.json").write_text(json.dumps(tomllib.loads((here / "plan.toml").read_text())))
    line = fedglm("lighten", "model", "--config", tmp_path / "light.json", "--out", tmp_path / "light").line()
    assert "light.json is read, and would be written over" in line


@pytest.mark.usefixtures("here")
def test_in_python_as_well():
    for arguments, says in [
        ({"target": "size=4x", "stepz": 3}, "there is no option stepz: did you mean steps"),
        ({"target": "size=4x", "tolerance": 0.05}, "a percentage such as 5%"),
        ({"target": "size=4x", "steps": 0, "text": "public.jsonl"}, "--steps 0"),
        ({}, "--target size=20x"),
    ]:
        with pytest.raises(api.FedglmError, match=says):
            api.lighten("model", **arguments)
    with pytest.raises(api.FedglmError, match="no option txt: did you mean text"):
        api.diagnose("model", txt="public.jsonl")


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_disk_that_fills_up_leaves_nothing(monkeypatch, tmp_path):
    def fail(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(release_folder.os, "fsync", fail)
    with pytest.raises(StorageError, match="the disk is full"):
        api.lighten("model", config="plan.toml", out=tmp_path / "light", no_comparison=True)
    assert list(tmp_path.iterdir()) == []
