"""Folders and bundles that an earlier fedglm wrote (`tests/older/README.md`) open, go on and verify."""

import json
import shutil
import tarfile

import pytest
from command_line import run_here
from source_tree import ROOT

from fedglm.privacy.keys.signing import SigningKey
from fedglm.server.deployment.run_file import RunFile

pytestmark = pytest.mark.usefixtures("unsynced")

WRITTEN_AT = "/srv/older"
"""Where they were written; the records and the model are looked for where they lie now."""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """Never changed."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(ROOT / "tests" / "older" / "older.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "older"


@pytest.fixture
def older(unpacked, tmp_path):
    shutil.copytree(unpacked, tmp_path / "older", symlinks=True)
    for scenario in (tmp_path / "older").glob("*/scenario.toml"):
        scenario.write_text(scenario.read_text().replace(WRITTEN_AT, str(tmp_path / "older")))
    return tmp_path / "older"


def verdict(*arguments):
    done = run_here("audit", "verify", *arguments, "--json")
    assert done.code == 0, done.out + done.err
    return json.loads(done.out)["verdict"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("plain", "whole"),
        ("private", "whole"),
        ("private.zip", "whole"),
        ("site-0.zip", "alone"),
        ("deployed/site-0", "alone"),
        ("deployed/fed/runs/first", "alone"),
    ],
)
def test_their_records_verify(older, record, expected):
    assert verdict(older / record) == expected


def test_a_servers_records_and_a_sites_are_held_to_each_other(older):
    site = older / "deployed" / "site-0"
    done = run_here("audit", "verify", older / "deployed" / "fed" / "runs" / "first", "--site", site, "--json")
    found = json.loads(done.out)
    assert (done.code, found["held"]) == (3, True)  # 3: the other site's records are not here
    assert [check["check"] for check in found["checks"] if check["missing"]] == ["sealed", "sites"]


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize(("name", "privacy"), [("broken", "--no-dp"), ("broken-private", "--epsilon=8")])
def test_a_simulation_goes_on(older, name, privacy):
    options = ("--seed", 7, "--out", older / name, "--resume", "--json", "--workers", 1)
    summary = run_here("simulate", older / "tiny.toml", privacy, *options).json
    rows = [json.loads(line) for line in (older / name / "rounds.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == list(range(1, 9)) == list(range(1, summary["rounds"] + 1))
    assert verdict(older / name) == "whole"


def test_a_finished_simulation_is_reported_on(older):
    assert run_here("audit", "report", older / "private", "--json").code == 0
    assert "<svg" in (older / "private" / "audit" / "report.html").read_text()


def test_a_sites_folder_opens(older):
    status = run_here("client", "status", older / "deployed" / "site-0", "--json").json
    assert (status["releases"], status["lacking"], status["refusals"]) == (3, [], 0)
    assert 7.9 < status["epsilon_spent"] < status["epsilon"] == 8.0


def test_a_servers_project_and_its_run_open(older):
    status = run_here("server", "status", "-C", older / "deployed" / "fed", "--json").json
    assert [site["name"] for site in status["sites"]] == ["site-0", "site-1"]
    folder = older / "deployed" / "fed" / "runs" / "first"
    plan = RunFile.load(folder).plan(folder, key=SigningKey.generate(), sites={})
    assert (plan.layout.size, plan.federation.rounds, plan.spec.codec) == (6512, 3, "topk-sign")
    assert run_here("watch", folder, "--once", "--json").json["rounds"]
