"""A simulated run ends in a light release of its model, or says why there is none."""

import hashlib
import json

import pytest

from fedglm.inference.model import LiteModel
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.signed_log import SignedLog

pytestmark = pytest.mark.usefixtures("unrendered", "unsynced")

SCENARIO = """
name = "light"
[federation]
nodes = 2
rounds = 2
[model]
light_every = 1
light = {{ size = "3x", tolerance = "90%", steps = 2, sequences = 64{more} }}
[data]
source = "{source}"
[training]
local_steps = 2
batch_size = 8
[evaluation]
sequences = 32
"""


def write_scenario(folder, *, source="breast-cancer", more=""):
    path = folder / "light.toml"
    path.write_text(SCENARIO.format(source=source, more=more))
    return path


def test_a_private_run_leaves_a_signed_light_release_of_its_last_model(fedglm, tmp_path):
    run = tmp_path / "run"
    summary = fedglm("simulate", write_scenario(tmp_path), "--out", run, "--epsilon", 8, "--json").json
    light = summary["light"]
    assert (light["reason"], light["round"], light["version"]) == (None, 2, 2)
    assert light["model_sha256"] == summary["model_sha256"]
    assert light["size_ratio"] >= 3
    assert "post-processing" in light["privacy"]
    key = SigningKey.load(run / "server.key").public
    release = open_release(run / "light", trust=Trust.in_keys([key]))
    facts = release.manifest.facts
    assert facts.run["model_sha256"] == summary["model_sha256"]
    assert (facts.privacy.epsilon, facts.privacy.delta) == pytest.approx((summary["epsilon"], summary["delta"]))
    assert light["manifest"] == hashlib.sha256((run / "light" / "manifest.json").read_bytes()).hexdigest()
    features = LiteModel.from_pretrained(run / "light", keys=[key.hex]).info()["features"]
    assert len(features) == 30
    entries = []
    SignedLog(run / "audit" / "log.sqlite", on_entry=entries.append)
    made = [(entry["round"], entry["manifest"]) for entry in entries if entry["kind"] == "light"]
    assert [number for number, _ in made] == [1, 2]
    assert made[-1][1] == light["manifest"] != made[0][1]
    assert fedglm("audit", "verify", run, "--json").json["held"]
    page = (run / "report.html").read_text()
    assert "Light release" in page
    assert "post-processing" in page


def test_text_that_cannot_be_had_is_a_mistake_before_the_run_begins(fedglm, tmp_path):
    run = tmp_path / "run"
    line = fedglm("simulate", write_scenario(tmp_path, source="digits"), "--out", run).line()
    assert "digits has no public records" in line
    assert not run.exists()


@pytest.mark.slow  # it tries the hardest cut of each family
def test_a_run_whose_light_model_misses_its_size_ends_well_and_says_so(fedglm, tmp_path):
    run = tmp_path / "run"
    changes = ("--set", "model.light.size=5000x", "--set", "model.light_every=2")
    done = fedglm("simulate", write_scenario(tmp_path), "--out", run, "--no-dp", *changes)
    assert done.code == 0, done.err
    assert "no light release: nothing here reaches" in done.out.replace("\n", " ")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["light"]["manifest"] is None
    assert not (run / "light").exists()
    assert "None was released" in (run / "report.html").read_text()
