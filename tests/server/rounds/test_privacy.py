"""Sites that refuse: the plan at the start, or an update when their budget is spent. The run goes on without them."""

from dataclasses import replace

import pytest
from audited_run import small_nodes
from custodies import MECHANISM, custody
from fake_grid import FakeGrid, Watcher, answering, federate, instruction_of, plan, spoiled
from flwr.app import Error, Message
from tiny_federation import tiny_node

from fedglm.privacy.accounting.accountant import compute_epsilon
from fedglm.privacy.errors import LogError
from fedglm.protocol.messages import RECORD
from fedglm.server.coordinator import Coordinator
from fedglm.server.rounds.participants import FederationError

pytestmark = pytest.mark.usefixtures("unsynced")

ONE_ROUND = compute_epsilon([MECHANISM.event()], 1e-3).epsilon
TWO_ROUNDS = compute_epsilon([MECHANISM.event()] * 2, 1e-3).epsilon


def run(folder, nodes, **changes):
    return federate(folder, nodes, mechanism=MECHANISM, **changes)


def test_a_private_run_takes_every_node_and_spends_what_the_plan_says(tmp_path):
    coordinator, grid, _ = run(tmp_path, small_nodes(tmp_path))
    assert [row["nodes_accepted"] for row in coordinator.rows] == [3, 3, 3]
    asked = [instruction_of(m.content[RECORD]) for m in grid.sent if m.metadata.message_type == "train"]
    # From the second round on the server gives each node's anchor back.
    assert {order.round: order.anchor is None for order in asked} == {1: True, 2: False, 3: False}


def test_a_site_whose_policy_refuses_the_plan_is_left_out_and_named(tmp_path):
    strict = {"b": {"noise_multiplier_at_least": 5.0}}
    coordinator, _, watcher = run(tmp_path, small_nodes(tmp_path, **strict))
    assert [row["nodes_sampled"] for row in coordinator.rows] == [2, 2, 2]
    (refused,) = [event for event in watcher.events if event[0] == "refused"]
    assert refused[1] == 9
    assert "refused by rule noise-multiplier" in refused[2]


def test_where_every_site_refuses_the_run_does_not_begin(tmp_path):
    with pytest.raises(FederationError, match="no site permits the plan: refused by rule without-differential-privacy"):
        federate(tmp_path, small_nodes(tmp_path))  # no mechanism


def test_a_site_whose_budget_ends_stops_and_the_run_goes_on(tmp_path):
    poor = {"b": {"epsilon": (ONE_ROUND + TWO_ROUNDS) / 2}}
    coordinator, grid, watcher = run(tmp_path, small_nodes(tmp_path, **poor), rounds=4)
    accepted = [(row["nodes_sampled"], row["nodes_accepted"]) for row in coordinator.rows]
    assert accepted == [(3, 3), (3, 2), (2, 2), (2, 2)]
    (reason,) = coordinator.rows[1]["rejections"].values()
    assert "refused by rule epsilon-budget" in reason
    assert f"{ONE_ROUND:.3g}" not in reason  # what was spent before is the site's own affair
    asked = [
        m.metadata.group_id for m in grid.sent if m.metadata.dst_node_id == 9 and m.metadata.message_type == "train"
    ]
    assert asked == ["1", "2"]
    assert ("reply", 2, "b", reason) in watcher.events


def test_when_every_budget_is_spent_the_run_ends_with_the_reason_and_keeps_its_model(tmp_path):
    poor = {name: {"epsilon": (ONE_ROUND + TWO_ROUNDS) / 2} for name in "abc"}
    nodes = small_nodes(tmp_path, **poor)
    with pytest.raises(FederationError, match=r"0 of 3 updates were good.*epsilon-budget"):
        run(tmp_path, nodes)
    grid = FakeGrid(nodes)
    resumed = Coordinator(plan(tmp_path, mechanism=MECHANISM), grid, listener=Watcher(), resume=True)
    assert len(resumed.rows) == 1


def test_a_withdrawal_survives_a_restart_of_the_server(tmp_path):
    poor = {"b": {"epsilon": (ONE_ROUND + TWO_ROUNDS) / 2}}
    nodes = small_nodes(tmp_path, **poor)
    run(tmp_path, nodes, rounds=3)
    grid = FakeGrid(nodes)
    longer = plan(tmp_path, mechanism=MECHANISM, rounds=5)
    coordinator = Coordinator(longer, grid, listener=Watcher(), resume=True)
    coordinator.run()
    assert [row["nodes_sampled"] for row in coordinator.rows] == [3, 3, 2, 2, 2]


@pytest.mark.parametrize(
    ("put_back", "said"),
    [
        (("ledger.sqlite", "log.sqlite"), "refused by rule log-anchor"),
        (("ledger.sqlite",), "the ledger has 1 rows, and the log shows 2: it was rolled back"),
        (("log.sqlite",), "refused by rule log-anchor"),
    ],
)
def test_a_node_that_was_put_back_from_a_backup_releases_nothing(tmp_path, put_back, said):
    files = [tmp_path / "b" / "custody" / name for name in put_back]
    nodes = small_nodes(tmp_path)
    backup = {}

    def rolled_back(reply, _message):
        # After the second round's update has left, the machine is put back to where it was before.
        for file in files:
            file.write_bytes(backup[file])
        return reply

    answer = spoiled(nodes[9], rolled_back)

    def act(message):
        if message.metadata.message_type == "train" and message.metadata.group_id == "2":
            backup.update({file: file.read_bytes() for file in files})
        if message.metadata.group_id == "3":  # a machine that starts again opens its custody anew
            try:
                nodes[9] = answering(tiny_node(tmp_path, "b", data_seed=1, rows=20), private=True)
            except LogError as exc:
                return Message(Error(0, str(exc)), reply_to=message)
            return nodes[9](message)
        return answer(message)

    nodes[9] = act
    coordinator, _, _ = run(tmp_path, nodes)
    assert said in coordinator.rows[2]["rejections"]["b"]
    assert coordinator.rows[2]["nodes_accepted"] == 2


def test_noise_differs_between_nodes_of_the_same_data_and_seed(tmp_path):
    nodes = {i: answering(tiny_node(tmp_path, "ab"[i], data_seed=0, rows=20), private=True) for i in range(2)}
    _, grid, _ = run(tmp_path, nodes, rounds=1)
    blobs = {bytes(m.content[RECORD]["update"]) for m in grid.received if "update" in m.content[RECORD]}
    assert len(blobs) == 2


def test_the_mechanism_that_the_plan_names_is_the_one_in_the_ledger(tmp_path):
    other = replace(MECHANISM, noise_multiplier=2.5)
    federate(tmp_path, small_nodes(tmp_path), mechanism=other)
    rows = custody(tmp_path / "a" / "custody", private=True).ledger.rows()
    assert {row.charge.mechanism for row in rows} == {other}
    assert [row.charge.round for row in rows] == [1, 2, 3]
