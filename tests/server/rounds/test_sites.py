"""Enrolled sites: who may take part, what a signature covers, and nodes that are away, come back, or lose a message."""

import threading
import time
from dataclasses import replace

import pytest
from fake_grid import FakeGrid, Watcher, answering, federate, plan, spoiled
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from google.protobuf.message import DecodeError
from tiny_federation import federated_model, tiny_node

from fedglm.privacy.keys.signing import SigningKey
from fedglm.protocol.messages import RECORD, UPDATE
from fedglm.server.coordinator import Coordinator
from fedglm.server.rounds import admission
from fedglm.server.rounds import round as rounds
from fedglm.server.rounds.exchange import Exchange
from fedglm.server.rounds.participants import LOST, FederationError

KEYS = {name: SigningKey.generate() for name in "abc"}
SITES = {name: key.public for name, key in KEYS.items()}
IDS = {"a": 10, "b": 9, "c": 8}


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    """Looks at who is there come at once; what must survive a power cut is tested elsewhere."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(rounds, "_LOOK_S", 0.05)
    monkeypatch.setattr(admission, "_LOOK_S", 0.05)
    monkeypatch.setattr(admission, "_ASK_AGAIN_S", 0.5)


def site(folder, name, *, key=None, **options):
    index = "abc".index(name)
    node = tiny_node(folder, name, data_seed=index, rows=10 * (index + 1), **options)
    return answering(node, key=key or KEYS[name])


def signed_nodes(folder, names="abc"):
    return {IDS[name]: site(folder, name) for name in names}


def run(folder, nodes=None, *, grid=None, hook=None, **changes):
    grid = grid or FakeGrid(signed_nodes(folder) if nodes is None else nodes)
    watcher = Watcher(hook)
    settings = {"sites": SITES, "join_timeout_s": 20.0, **changes}
    coordinator = Coordinator(plan(folder, **settings), grid, listener=watcher)
    coordinator.run()
    return coordinator, grid, watcher


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return federate(tmp_path_factory.mktemp("undisturbed"))[0].model_sha256


def accepted(coordinator):
    return [row["nodes_accepted"] for row in coordinator.rows]


# --- who may take part


def test_signed_or_not_the_model_has_the_same_bits(tmp_path, undisturbed):
    coordinator, _, watcher = run(tmp_path)
    assert coordinator.model_sha256 == undisturbed
    assert [event for event in watcher.events if event[0] == "away"] == []


def test_who_is_not_enrolled_or_does_not_sign_is_turned_away_and_the_run_goes_on(tmp_path, undisturbed):
    nodes = signed_nodes(tmp_path)
    nodes[7] = answering(tiny_node(tmp_path, "stranger"), key=SigningKey.generate())
    nodes[6] = answering(tiny_node(tmp_path / "posing", "a"), key=SigningKey.generate())
    nodes[5] = answering(tiny_node(tmp_path / "unsigned", "b"))
    other = tiny_node(tmp_path / "other", "c", model=federated_model(width=6))
    nodes[4] = answering(other, key=KEYS["c"])
    coordinator, _, watcher = run(tmp_path, nodes)
    told = {event[1]: event[2] for event in watcher.events if event[0] == "away"}
    assert "no site is enrolled under the name 'stranger'" in told[7]
    assert "a: the message is not signed by the site's key" in told[6]
    assert "b: the message is not signed by the site's key" in told[5]
    assert "another layout" in told[4]
    assert accepted(coordinator) == [3, 3, 3]
    assert coordinator.model_sha256 == undisturbed


def test_too_few_sites_end_the_run_before_it_begins_and_name_the_missing(tmp_path):
    with pytest.raises(FederationError, match=r"1 of 3 enrolled sites take part after 0\.3 s.*missing: b, c"):
        run(tmp_path, signed_nodes(tmp_path, "a"), join_timeout_s=0.3)


def test_an_introduction_that_got_lost_is_asked_for_again_soon(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(admission, "_LOST_S", 0.05)
    monkeypatch.setattr(admission, "_ASK_AGAIN_S", 1000.0)
    nodes, times = signed_nodes(tmp_path), []
    answer = nodes[9]

    def stumble(message):
        times.append(message)
        return lost(ErrorCode.CLIENT_APP_CRASHED)(None, message) if len(times) < 3 else answer(message)

    nodes[9] = stumble
    coordinator, _, watcher = run(tmp_path, nodes)
    assert coordinator.model_sha256 == undisturbed
    assert [event for event in watcher.events if event[0] == "away"] == []


# --- what a signature covers


def change_update(reply):
    fields = dict(reply.content.config_records[RECORD])
    blob = bytearray(fields[UPDATE])
    blob[-1] ^= 1
    reply.content.config_records[RECORD][UPDATE] = bytes(blob)
    return reply


def change_ledger(reply):
    reply.content.config_records[RECORD]["log"] = "1:" + "0" * 32
    return reply


def drop_signature(reply):
    del reply.content.config_records[RECORD]["signature"]
    return reply


@pytest.mark.parametrize("change", [change_update, change_ledger, drop_signature])
def test_an_altered_answer_is_rejected(tmp_path, change):
    nodes = signed_nodes(tmp_path)
    nodes[9] = spoiled(nodes[9], lambda reply, _message: change(reply))
    coordinator, _, _ = run(tmp_path, nodes)
    assert accepted(coordinator) == [3, 2, 3]
    (reason,) = coordinator.rows[1]["rejections"].values()
    assert "not signed by the site's key" in reason


def test_an_answer_of_another_round_or_site_is_rejected(tmp_path):
    kept = {}

    def keep(reply, _message):
        kept["first"] = reply
        return reply

    def replay(_reply, message):
        old = dict(kept["first"].content.config_records[RECORD])
        fresh = Message(kept["first"].content, reply_to=message)
        # Even with the nonce of this round: the signature is of the other.
        fresh.content.config_records[RECORD]["nonce"] = message.content.config_records[RECORD]["nonce"]
        assert old["signature"] == fresh.content.config_records[RECORD]["signature"]
        return fresh

    nodes = signed_nodes(tmp_path)
    nodes[9] = spoiled(spoiled(nodes[9], keep, (1,)), replay, (2,))
    coordinator, _, _ = run(tmp_path, nodes)
    assert accepted(coordinator) == [3, 2, 3]


# --- away, lost, late


def lost(code):
    def answer(_reply, message):
        return Message(Error(code=int(code), reason="gone"), reply_to=message)

    return answer


@pytest.mark.parametrize("code", sorted(LOST))
def test_what_got_lost_is_asked_for_again(tmp_path, undisturbed, code):
    nodes, times = signed_nodes(tmp_path), []

    def once(reply, message):
        times.append(message)
        return lost(code)(reply, message) if len(times) == 1 else reply

    nodes[9] = spoiled(nodes[9], once)
    coordinator, grid, _ = run(tmp_path, nodes)
    assert accepted(coordinator) == [3, 3, 3]
    assert coordinator.model_sha256 == undisturbed
    # It answers, that is lost; asked again it says which version it is at by now; then it answers with the same bytes.
    asked = [m for m in grid.sent if m.metadata.dst_node_id == 9 and m.metadata.group_id == "2"]
    assert len(times) == len(asked) == 3


def test_silence_counts_as_a_loss_after_a_while_and_a_second_answer_counts_once(tmp_path, undisturbed):
    grid = FakeGrid(signed_nodes(tmp_path))
    answer, held = grid.nodes[9], []

    def slow(message):
        if message.metadata.message_type == "train" and message.metadata.group_id == "2" and not held:
            held.append(answer(message))
            return None
        if held:
            grid.stray.append(held.pop())
        return answer(message)

    grid.nodes[9] = slow
    coordinator, _, _ = run(tmp_path, grid=grid, resend_after_s=0.3)
    assert accepted(coordinator) == [3, 3, 3]
    assert coordinator.model_sha256 == undisturbed


def test_a_node_that_was_started_again_is_asked_again_at_once(tmp_path, undisturbed):
    grid, killed = FakeGrid(signed_nodes(tmp_path)), []
    answer = grid.nodes[9]

    def dies_over_it(message):
        if message.metadata.message_type == "train" and message.metadata.group_id == "2" and not killed:
            killed.append(time.time() + 0.01)
            return None
        return answer(message)

    grid.nodes[9] = dies_over_it

    def last_activation(name):
        return killed[0] if name == "b" and killed else 0.0

    coordinator, _, _ = run(tmp_path, grid=grid, resend_after_s=60.0, last_activation=last_activation)
    assert accepted(coordinator) == [3, 3, 3]
    assert coordinator.model_sha256 == undisturbed


def test_what_is_lost_each_time_is_given_up(tmp_path):
    nodes = signed_nodes(tmp_path)
    nodes[9] = spoiled(nodes[9], lost(ErrorCode.CLIENT_APP_CRASHED))
    coordinator, grid, _ = run(tmp_path, nodes, resends=2)
    assert accepted(coordinator) == [3, 2, 3]
    assert coordinator.rows[1]["rejections"] == {"b": "the node reports: gone (2 times asked again)"}
    assert len([m for m in grid.sent if m.metadata.dst_node_id == 9 and m.metadata.group_id == "2"]) == 3


def test_a_round_waits_for_a_node_that_is_away_and_comes_back(tmp_path, undisturbed):
    grid = FakeGrid(signed_nodes(tmp_path))
    times = []

    def vanish(_reply, message):
        times.append(message)
        if len(times) == 1:
            grid.offline.add(9)
            return lost(ErrorCode.NODE_UNAVAILABLE)(None, message)
        return _reply

    def look(*event):
        if event[:2] == ("reply", 2) and len(grid.offline) and len(times) == 1:
            grid.offline.clear()

    grid.nodes[9] = spoiled(grid.nodes[9], vanish)
    coordinator, _, _ = run(tmp_path, grid=grid, hook=look)
    assert accepted(coordinator) == [3, 3, 3]
    assert coordinator.model_sha256 == undisturbed


def test_a_site_that_comes_late_joins_at_the_next_round(tmp_path):
    grid = FakeGrid(signed_nodes(tmp_path))
    grid.offline.add(9)

    def arrive(*event):
        if event[:2] == ("started", 2):
            grid.offline.clear()
            grid.nodes[8] = slowly(grid.nodes[8])

    def slowly(answer):
        asked = []

        def act(message):
            asked.append(message)
            if len(asked) == 1 and message.metadata.message_type == "train":
                return lost(ErrorCode.MESSAGE_UNAVAILABLE)(None, message)  # the round lasts for a look
            return answer(message)

        return act

    coordinator, _, _ = run(tmp_path, grid=grid, hook=arrive, join_timeout_s=0.3, rounds=4)
    assert [row["nodes_sampled"] for row in coordinator.rows][:2] == [2, 2]
    assert coordinator.rows[-1]["nodes_accepted"] == 3


def test_a_site_that_comes_back_under_another_number_goes_on(tmp_path, undisturbed):
    """The server's database was lost: Flower numbers the nodes anew."""
    grid = FakeGrid(signed_nodes(tmp_path))

    def renumber(*event):
        if event[:2] == ("started", 2) and 9 in grid.nodes:
            grid.nodes[99] = grid.nodes.pop(9)
            grid.nodes[9] = lambda message: lost(ErrorCode.NODE_UNAVAILABLE)(None, message)
            grid.offline.add(9)

    coordinator, _, _ = run(tmp_path, grid=grid, hook=renumber)
    assert accepted(coordinator) == [3, 3, 3]
    assert coordinator.model_sha256 == undisturbed


def test_a_round_closes_when_enough_have_answered(tmp_path):
    nodes = signed_nodes(tmp_path)
    nodes[9] = spoiled(nodes[9], lambda _reply, _message: None)
    coordinator, _, watcher = run(tmp_path, nodes, enough=0.6)
    assert coordinator.rows[1]["rejections"] == {"b": "it was let go: enough had answered"}
    assert ("reply", 2, "b", "it was let go: enough had answered") in watcher.events
    assert coordinator.rows[2]["nodes_accepted"] >= 2


def test_a_reply_that_is_no_message_is_its_senders_fault_alone():
    """Flower raises from one call for all replies in it."""
    good = Message(RecordDict(), dst_node_id=1, message_type="train")

    class Grid(FakeGrid):
        def pull_messages(self, message_ids):
            for message_id in message_ids:
                if message_id == "m1":
                    raise DecodeError("wire type 7")
                good.metadata.__dict__["_reply_to_message_id"] = message_id
                yield good

    exchange = Exchange(Grid({}), threading.Event())
    exchange.send([(number, RecordDict()) for number in (1, 2, 3)], "train", 1)
    found = {sent.node_id: reply for _ in range(2) for sent, reply in exchange.poll()}
    assert set(found) == {1, 2, 3}
    assert found[1] is found[3] is good is not found[2]
    assert found[2].has_content()
    assert not found[2].content


def test_a_resumed_run_takes_sites_that_were_enrolled_meanwhile_and_lets_the_revoked_go(tmp_path):
    run(tmp_path, rounds=2)
    key = SigningKey.generate()
    sites = {name: SITES[name] for name in "ab"} | {"d": key.public}
    nodes = signed_nodes(tmp_path, "ab")
    nodes[7] = answering(tiny_node(tmp_path, "d", data_seed=5, rows=20), key=key)
    settings = plan(tmp_path, rounds=4, sites=sites, join_timeout_s=20.0)
    coordinator = Coordinator(replace(settings), FakeGrid(nodes), listener=Watcher(), resume=True)
    coordinator.run()
    assert accepted(coordinator) == [3, 3, 3, 3]


def test_too_few_because_sites_refuse_says_why(tmp_path):
    def refuse(message):
        reason = "refused by rule steps: steps: 20, and steps_at_most is 5"
        return Message(Error(code=int(ErrorCode.MOD_FAILED_PRECONDITION), reason=reason), reply_to=message)

    nodes = dict.fromkeys(IDS.values(), refuse)
    with pytest.raises(FederationError, match=r"0 of 3 enrolled sites.*refused by rule steps: steps: 20"):
        run(tmp_path, nodes)
