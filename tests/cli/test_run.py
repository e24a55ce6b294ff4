"""What `fedglm run` refuses before it asks anybody anything."""

import json

import pytest
from projects import Site, make_project

from fedglm.core.files import write_atomically
from fedglm.run_folder.names import DONE
from fedglm.scenarios.deployment import build_deployed_model, prepare
from fedglm.scenarios.scenario import Scenario, scenario_text
from fedglm.server.deployment.submission import SUBMITTED, list_runs_under_way
from fedglm.server.project.enrolment import enrol
from fedglm.server.superlink.control import Run

ROUNDS = 3


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with one site, and a run of hospital that was begun."""
    folder = tmp_path_factory.mktemp("project")
    found = make_project(folder / "fl")
    enrol(found, Site.make("a").hand_over(folder))
    changes = {"federation.nodes": None, "federation.rounds": ROUNDS, "privacy.epsilon": None}
    scenario = Scenario.from_toml(scenario_text("hospital"), changes)
    prepare(build_deployed_model(scenario), found.runs / "begun", 1)
    return found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["iot"], "the run was begun with name = 'hospital'"),
        (["--rounds", "9"], f"the run was begun with federation.rounds = {ROUNDS}"),
        (["hospital", "--set", "training.local_steps=77"], "the run was begun with training.local_steps"),
    ],
)
def test_a_run_is_not_gone_on_with_under_other_settings(fedglm, project, words, said):
    result = fedglm("run", *words, "-C", project.folder, "--name", "begun", "--resume", "--no-dp")
    assert said in result.line()


def test_a_run_is_begun_once_and_only_a_begun_one_is_gone_on_with(fedglm, project):
    again = fedglm("run", "hospital", "-C", project.folder, "--name", "begun", "--no-dp")
    assert "already holds a run: add --resume" in again.line()
    other = fedglm("run", "-C", project.folder, "--name", "other", "--resume", "--no-dp")
    assert "holds no run other" in other.line()
    assert "--resume needs --name" in fedglm("run", "-C", project.folder, "--resume").line()


class Listing:
    """A SuperLink that lists these runs as running."""

    def __init__(self, *numbers):
        self._numbers = numbers

    def list_runs(self):
        return [Run(number, "running", "2027-01-04T10:00:00", 0, 0) for number in self._numbers]


def test_a_run_that_is_done_is_not_under_way_though_the_superlink_calls_it_so(tmp_path):
    project = make_project(tmp_path / "fl")
    for name, number in (("first", 1), ("second", 2)):
        write_atomically(project.runs / name / SUBMITTED, json.dumps({"run_ids": [number]}))
    assert list_runs_under_way(project, Listing(1, 2)) == ["first", "second"]
    write_atomically(project.runs / "first" / DONE, "{}")
    assert list_runs_under_way(project, Listing(1, 2)) == ["second"]
    assert list_runs_under_way(project, Listing(1)) == []
