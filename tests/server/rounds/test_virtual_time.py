"""A run by another clock than the wall's: hours of waiting that take no time, and the same models."""

import json
import threading
import time
from itertools import pairwise

import pytest
from fake_grid import FakeGrid, Watcher, answering, federate, plan, spoiled
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from tiny_federation import tiny_node
from virtual_clock import VirtualClock

from fedglm.privacy.keys.signing import SigningKey
from fedglm.server.coordinator import Coordinator
from fedglm.server.deployment.run_log import RunLog
from fedglm.server.rounds.exchange import Stopped
from fedglm.server.rounds.participants import FederationError

KEYS = {name: SigningKey.generate() for name in "abc"}
SITES = {name: key.public for name, key in KEYS.items()}
IDS = {"a": 10, "b": 9, "c": 8}

pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture(autouse=True)
def _nobody_sleeps(monkeypatch):
    def fail(*_, **__):
        pytest.fail("somebody waits by the wall's clock")

    monkeypatch.setattr(time, "sleep", fail)
    monkeypatch.setattr(threading.Event, "wait", fail)


def nodes_of(folder, names="abc"):
    made = {}
    for name in names:
        index = "abc".index(name)
        node = tiny_node(folder, name, data_seed=index, rows=10 * (index + 1))
        made[IDS[name]] = answering(node, key=KEYS[name])
    return made


def run(folder, nodes, *, listener=None, clock=None, stop=None, **changes):
    settings = {"sites": SITES, "round_timeout_s": 3600.0, **changes}
    clock = clock or VirtualClock()
    coordinator = Coordinator(
        plan(folder, **settings), FakeGrid(nodes), listener=listener or Watcher(), clock=clock, stop=stop
    )
    coordinator.run()
    return coordinator, clock


def silent(answer, rounds=(2,)):
    return spoiled(answer, lambda _reply, _message: None, rounds)


def test_the_model_is_that_of_the_walls_clock(tmp_path):
    coordinator, clock = run(tmp_path / "virtual", nodes_of(tmp_path / "virtual"))
    assert clock.now < 60
    assert coordinator.model_sha256 == federate(tmp_path / "wall")[0].model_sha256


def test_others_wait_for_a_silent_site_for_the_grace_alone(tmp_path):
    nodes = nodes_of(tmp_path)
    nodes[9] = silent(nodes[9])
    coordinator, _ = run(tmp_path, nodes, grace_s=600.0, resend_after_s=1e5)
    assert [row["nodes_accepted"] for row in coordinator.rows] == [3, 2, 3]
    assert coordinator.rows[1]["rejections"] == {"b": "no reply within 600 s"}
    assert 600 <= coordinator.rows[1]["wall_s"] < 601
    assert coordinator.rows[2]["wall_s"] < 1


def test_the_grace_is_as_long_as_most_took_where_they_took_longer(tmp_path):
    nodes, clock = nodes_of(tmp_path), VirtualClock()

    def slowly(reply, _message):
        clock.now += 400
        return reply

    nodes[9] = silent(nodes[9])
    for number in (8, 10):
        nodes[number] = spoiled(nodes[number], slowly)
    coordinator, _ = run(tmp_path, nodes, clock=clock, grace_s=10.0, resend_after_s=1e5)
    assert 1600 <= coordinator.rows[1]["wall_s"] < 1601  # 2 x 400 s, and as long again


def test_without_most_answers_a_round_lasts_to_its_end(tmp_path):
    nodes = nodes_of(tmp_path)
    for number in (8, 9):
        nodes[number] = silent(nodes[number], (1,))
    with pytest.raises(FederationError, match=r"1 of 3 updates were good, at least 2 are needed; no reply within 36"):
        run(tmp_path, nodes, grace_s=10.0, resend_after_s=1e5)


def test_silence_is_asked_again_after_a_while_and_given_up_in_the_end(tmp_path):
    nodes, clock = nodes_of(tmp_path), VirtualClock()
    asked = []

    def count(_reply, _message):
        asked.append(clock.now)

    nodes[9] = spoiled(nodes[9], count)
    coordinator, _ = run(tmp_path, nodes, clock=clock, grace_s=3000.0, resend_after_s=300.0, resends=2)
    assert coordinator.rows[1]["rejections"] == {"b": "no reply within 300 s (2 times asked again)"}
    assert len(asked) == 3
    assert all(300 <= later - earlier <= 303 for earlier, later in pairwise(asked))
    assert 900 <= coordinator.rows[1]["wall_s"] <= 909


def test_a_node_that_was_started_again_is_known_by_the_same_clock(tmp_path):
    nodes, clock, killed = nodes_of(tmp_path), VirtualClock(), []

    def dies(reply, _message):
        if killed:
            return reply
        killed.append(clock.time() + 1.0)
        return None

    nodes[9] = spoiled(nodes[9], dies)
    coordinator, _ = run(
        tmp_path, nodes, clock=clock, last_activation=lambda name: killed[0] if killed and name == "b" else 0.0
    )
    assert [row["nodes_accepted"] for row in coordinator.rows] == [3, 3, 3]
    assert 2 <= coordinator.rows[1]["wall_s"] < 5


def test_sites_that_do_not_come_are_waited_for_and_a_lost_answer_is_asked_for_again(tmp_path):
    nodes, clock, asked = nodes_of(tmp_path, "a"), VirtualClock(), []

    def lost(message):
        asked.append(clock.now)
        return Message(Error(code=int(ErrorCode.CLIENT_APP_CRASHED), reason="gone"), reply_to=message)

    nodes[9] = lost
    with pytest.raises(FederationError, match=r"1 of 3 enrolled sites take part after 600\.0 s.*missing: b, c"):
        run(tmp_path, nodes, clock=clock, join_timeout_s=600.0)
    assert 85 < len(asked) < 121  # every five seconds, at a look each two


def test_a_site_that_seals_nothing_delays_a_run_by_seconds(tmp_path):
    nodes, clock = nodes_of(tmp_path), VirtualClock()
    answer = nodes[9]
    nodes[9] = lambda message: None if message.metadata.message_type == "query.seal" else answer(message)
    coordinator, _ = run(tmp_path, nodes, clock=clock, log=tmp_path / "log.sqlite")
    assert [row["nodes_accepted"] for row in coordinator.rows] == [3, 3, 3]
    assert 20 <= clock.now < 25  # ten at each of the two looks at the end


def test_it_stops_where_it_waits(tmp_path):
    stop = threading.Event()
    nodes = nodes_of(tmp_path)

    def stops(_reply, _message):
        stop.set()

    nodes[9] = spoiled(nodes[9], stops)
    with pytest.raises(Stopped):
        run(tmp_path, nodes, stop=stop)


def test_events_bear_the_times_of_the_same_clock(tmp_path):
    clock = VirtualClock()
    nodes = nodes_of(tmp_path)
    nodes[9] = silent(nodes[9])
    run(tmp_path, nodes, clock=clock, listener=RunLog(tmp_path, clock), grace_s=600.0, resend_after_s=1e5)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events[0]["time"].startswith("2023-11-14T22:13:2")
    (late,) = [event for event in events if event["event"] == "rejected"]
    assert late["time"].startswith("2023-11-14T22:23:2")
