"""A run that is killed or stopped goes on to the same bits."""

import threading
from dataclasses import replace

import pytest
from fake_grid import FEDERATED, FakeGrid, Watcher, federate, plan, real_nodes, timeless

from fedglm.server.coordinator import Coordinator
from fedglm.server.rounds.exchange import Stopped
from fedglm.server.rounds.participants import FederationError

pytestmark = pytest.mark.usefixtures("unsynced")


# --- going on


def run(folder, **options):
    """Four rounds of two nodes: before, in and after any of them a run may be killed."""
    return federate(folder, real_nodes(folder, "ab"), rounds=4, **options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    coordinator, _, _ = run(tmp_path_factory.mktemp("undisturbed"))
    return coordinator


class Killed(BaseException):
    """The server's process is gone."""


def killed_at(*where):
    def hook(*event):
        if event[: len(where)] == where:
            raise Killed

    return hook


@pytest.mark.parametrize(
    "where",
    [
        ("resumed", 0),
        ("reply", 3),
        ("done", 3),
        ("done", 4),
        *(pytest.param(where, marks=pytest.mark.slow) for where in (("reply", 1), ("started", 3))),
    ],
    ids=str,
)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, undisturbed, where):
    with pytest.raises(Killed):
        run(tmp_path, hook=killed_at(*where))
    coordinator, _, watcher = run(tmp_path, resume=True, seed=4)
    assert coordinator.model_sha256 == undisturbed.model_sha256
    same = [{k: v for k, v in row.items() if "link_bytes" not in k} for row in timeless(coordinator.rows)]
    assert same == [{k: v for k, v in row.items() if "link_bytes" not in k} for row in timeless(undisturbed.rows)]
    assert watcher.events[0] == (
        "resumed",
        {"resumed": 0, "reply": where[1] - 1, "started": 2, "done": where[1]}[where[0]],
    )


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(tmp_path, undisturbed):
    stop = threading.Event()
    with pytest.raises(Stopped):
        run(tmp_path, stop=stop, hook=lambda *event: stop.set() if event[:2] == ("done", 2) else None)
    coordinator, _, _ = run(tmp_path, resume=True)
    assert coordinator.model_sha256 == undisturbed.model_sha256


def test_to_resume_what_never_began_is_to_begin(tmp_path, undisturbed):
    assert run(tmp_path, resume=True)[0].model_sha256 == undisturbed.model_sha256


def test_to_resume_what_is_done_asks_for_no_training(tmp_path, undisturbed):
    run(tmp_path)
    coordinator, grid, _ = run(tmp_path, resume=True)
    assert {m.metadata.message_type for m in grid.sent} == {"query"}
    assert coordinator.model_sha256 == undisturbed.model_sha256


def test_a_damaged_newest_checkpoint_costs_a_round_and_no_more(tmp_path):
    federate(tmp_path, rounds=3)
    newest = max((tmp_path / "checkpoint").iterdir())
    newest.write_bytes(newest.read_bytes()[:-9])
    coordinator, _, watcher = federate(tmp_path, rounds=4, resume=True)
    assert watcher.events[0] == ("resumed", 2)
    assert [row["nodes_accepted"] for row in coordinator.rows] == [3] * 4


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    federate(tmp_path, rounds=1)
    layout = replace(FEDERATED.layout, names=("x", *FEDERATED.layout.names[1:]))
    with pytest.raises(FederationError, match="is of another model: give the run's own scenario"):
        Coordinator(plan(tmp_path, layout=layout), FakeGrid({}), listener=Watcher(), resume=True)


@pytest.mark.parametrize("names", ["ab", "abcd", "abd"])
def test_a_checkpoint_made_with_other_nodes_is_refused(tmp_path, names):
    federate(tmp_path, rounds=1)
    with pytest.raises(FederationError, match=r"made with other nodes \(in one only: "):
        federate(tmp_path, real_nodes(tmp_path, names), resume=True)
