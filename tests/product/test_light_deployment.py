"""Light releases in a real deployment: made by the server's process, handed out, and used at a site."""

import json

import pytest
from command_line import run_here
from real_federation import OPEN, Federation, told

from fedglm.inference.model import LiteModel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

LIGHT = ("--no-dp", "--rounds", "2", "--set", "evaluation.baselines=[]", "--set", "model.light.size=3x",
         "--set", "model.light.tolerance=60%", "--set", "model.light.steps=5")  # fmt: skip


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with Federation(tmp_path_factory.mktemp("light"), 2, policy=OPEN | {"light_validation": "true"}) as made:
        made.start()
        yield made
        made.stop()


def run(federation, name):
    with federation.run("hospital", name, *LIGHT) as process:
        return told(process.finish(timeout=1800)).json


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_each_site_gets_it_by_a_delta_the_second_time_and_predicts_by_it(federation, tmp_path):
    for number, name in enumerate(("first", "second"), start=1):
        light = run(federation, name)["light"]
        assert light["reason"] is None
        assert light["version"] == number
        folder = federation.project / "runs" / name
        files = read_files(folder / "light")
        assert light["bytes"] == sum(map(len, files.values()))
        for site in federation.names:
            (held,) = (path for path in (federation.site(site) / "state" / "light").iterdir() if path.is_dir())
            assert int(held.name) == number
            assert read_files(held) == files
        validations = sorted((folder / "light-validations" / f"{number:010d}").iterdir())
        assert [path.name for path in validations] == [f"{site}.json" for site in sorted(federation.names)]
        keys = [word for site in federation.names for word in ("--key", federation.site(site) / f"{site}.pub")]
        fleet = told(run_here("validate", "--fleet", *validations, *keys, "--json")).json
        assert [(each["passed"], each["verified"]) for each in fleet] == [(True, True)] * len(federation.names)
        assert all(each["validation"]["use"]["decode"] is None for each in fleet)  # it classifies
    sites = [word for site in federation.names for word in ("--site", federation.folder / site)]
    assert told(run_here("audit", "verify", folder, *sites, "--json")).json["held"]

    features = LiteModel.from_pretrained(folder / "light").info()["features"]
    rows, out = tmp_path / "rows.jsonl", tmp_path / "classified.jsonl"
    rows.write_text("".join(json.dumps(dict.fromkeys(features, value)) + "\n" for value in (0.1, 10.0, 1000.0)))
    told(run_here("client", "predict", rows, "-C", federation.site("site-0"), "--out", out))
    predicted = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(predicted) == 3
    assert all(abs(sum(row["probabilities"].values()) - 1) < 1e-3 for row in predicted)
