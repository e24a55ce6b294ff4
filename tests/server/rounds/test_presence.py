"""Sites that are absent or revoked while a run goes on: whom a round waits for, by a clock that nobody waits for."""

import json

import pytest
from fake_grid import FakeGrid, Watcher, plan
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from signing_sites import CODEC, signing_site
from virtual_clock import VirtualClock

from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.signed_log import SignedLog
from fedglm.server.coordinator import Coordinator
from fedglm.server.deployment.run_log import RunLog
from fedglm.server.rounds.participants import FederationError
from fedglm.server.rounds.presence import REVOKED

NAMES = "abcd"
KEYS = {name: SigningKey.generate() for name in NAMES}
SITES = {name: key.public for name, key in KEYS.items()}
IDS = {name: 10 - index for index, name in enumerate(NAMES)}

pytestmark = pytest.mark.usefixtures("unsynced")


class Federation:
    """Four sites on a fake grid, each of which takes a second for its update.

    `script` maps a round's number to what happens once its sites were asked; a site that is cut off answers nothing.
    """

    def __init__(self, folder):
        self.folder, self.clock, self.script, self.revoked = folder, VirtualClock(), {}, set()
        self.grid = FakeGrid({IDS[name]: self._site(name) for name in NAMES})
        self.watcher = Watcher(self._act)

    def _site(self, name):
        answer = signing_site(name, KEYS[name])

        def act(message):
            if IDS[name] in self.grid.offline:  # as Flower does, once the node counts as offline
                return Message(Error(code=int(ErrorCode.NODE_UNAVAILABLE), reason="gone"), reply_to=message)
            if name in self.revoked:
                return None
            self.clock.now += message.metadata.message_type == "train"
            return answer(message)

        return act

    def _act(self, *event):
        if event[0] == "started" and (happens := self.script.pop(event[1], None)):
            happens()

    def cut(self, *names):
        self.grid.offline |= {IDS[name] for name in names}

    def link(self, *names):
        self.grid.offline -= {IDS[name] for name in names}

    def run(self, listener=None, *, resume=False, **changes):
        settings = {
            "sites": SITES,
            "round_timeout_s": 3600.0,
            "codec": CODEC,
            "find_revoked": lambda: self.revoked,
            **changes,
        }
        coordinator = Coordinator(
            plan(self.folder, **settings),
            self.grid,
            listener=listener or self.watcher,
            clock=self.clock,
            resume=resume,
        )
        coordinator.run()
        return coordinator

    def asked(self, name, server_round):
        numbers = [m for m in self.grid.sent if m.metadata.message_type == "train"]
        return sum(m.metadata.dst_node_id == IDS[name] and m.metadata.group_id == str(server_round) for m in numbers)


def seconds(coordinator):
    return [row["wall_s"] for row in coordinator.rows]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return Federation(tmp_path_factory.mktemp("undisturbed")).run(rounds=8)


def test_a_site_that_leaves_and_one_that_is_revoked_cost_one_round_each(tmp_path, undisturbed):
    made = Federation(tmp_path)
    made.script = {3: lambda: made.cut("d"), 5: lambda: made.revoked.add("c")}
    log = tmp_path / "log.sqlite"
    coordinator = made.run(rounds=8, log=log)
    assert [row["nodes_sampled"] for row in coordinator.rows] == [4, 4, 4, 4, 4, 3, 3, 3]
    assert [row["nodes_accepted"] for row in coordinator.rows] == [4, 4, 3, 3, 2, 2, 2, 2]
    assert [row["nodes_rejected"] for row in coordinator.rows] == [0] * 8
    assert [row.get("absent") for row in coordinator.rows] == [None, None, *[["d"]] * 6]
    assert [row.get("revoked") for row in coordinator.rows] == [None] * 4 + [["c"]] + [None] * 3
    took, calm = seconds(coordinator), seconds(undisturbed)
    assert 120 <= took[2] < 130
    assert took[4] < 10
    assert all(took[i] <= 1.2 * calm[i] for i in (0, 1, 3, 5, 6, 7))
    assert [made.asked("d", number) for number in range(1, 9)] == [1, 1, 1, 0, 0, 0, 0, 0]
    assert [made.asked("c", number) for number in range(5, 9)] == [1, 0, 0, 0]
    states = [event[1:4] for event in made.watcher.events if event[0] == "presence"]
    assert states == [(3, "d", "offline"), (3, "d", "absent")]
    assert ("revoked", 5, "c", REVOKED) in made.watcher.events
    entries = [(e["kind"], e["round"], e["site"]) for e in written(log) if e["kind"] in ("absent", "revoked")]
    assert entries == [("absent", 3, "d"), ("absent", 4, "d"), ("revoked", 5, "c")] + [
        ("absent", number, "d") for number in range(5, 9)
    ]


def written(path):
    return [json.loads(entry) for entry in SignedLog(path, None).entries()]


def test_a_link_down_for_ninety_seconds_costs_no_update_and_no_bit(tmp_path, undisturbed):
    made = Federation(tmp_path)
    made.script = {3: lambda: made.cut("b")}
    wait = made.clock.wait

    def back(event, timeout_s):
        if made.grid.offline and made.clock.now > 100.0:
            made.link("b")
        return wait(event, timeout_s)

    made.clock.wait = back
    coordinator = made.run(rounds=8)
    assert [row["nodes_accepted"] for row in coordinator.rows] == [4] * 8
    assert seconds(coordinator)[2] > 80
    assert coordinator.model_sha256 == undisturbed.model_sha256


def test_a_site_that_is_back_while_a_round_goes_on_is_asked_at_once(tmp_path):
    made = Federation(tmp_path)
    answer, times = made.grid.nodes[IDS["a"]], []

    def lost_once(message):
        if message.metadata.message_type == "train" and message.metadata.group_id == "5" and not times:
            times.append(message)
            return Message(Error(code=int(ErrorCode.MESSAGE_UNAVAILABLE), reason="gone"), reply_to=message)
        return answer(message)

    made.grid.nodes[IDS["a"]] = lost_once  # so that the fifth round lasts until the next look
    made.script = {2: lambda: made.cut("b"), 5: lambda: made.link("b")}
    coordinator = made.run(rounds=6)
    assert [row["nodes_accepted"] for row in coordinator.rows] == [4, 3, 3, 3, 4, 4]
    assert [made.asked("b", number) for number in range(1, 7)] == [1, 1, 0, 0, 1, 1]
    assert seconds(coordinator)[4] < 10
    assert ("presence", 5, "b", "online") in [event[:4] for event in made.watcher.events]
    assert ("asked", 5, "b") in made.watcher.events


def test_where_most_are_absent_a_round_waits_as_long_as_it_may(tmp_path):
    made = Federation(tmp_path)
    made.script = {2: lambda: made.cut("b", "c", "d")}
    with pytest.raises(FederationError, match=r"round 2: 1 of 4 updates were good, at least 2 .*b is not connected"):
        made.run(round_timeout_s=1000.0)
    assert 1000 < made.clock.now < 1020


def test_a_site_that_is_away_as_the_time_is_up_is_no_rejection(tmp_path):
    made = Federation(tmp_path)
    made.script = {2: lambda: made.cut("d")}
    coordinator = made.run(grace_s=20.0, offline_grace_s=1000.0)
    assert [row["nodes_rejected"] for row in coordinator.rows] == [0, 0, 0]
    assert [row.get("absent") for row in coordinator.rows] == [None, ["d"], ["d"]]
    assert 20 <= seconds(coordinator)[1] < 30


def test_who_was_revoked_is_not_let_in_again_under_new_keys_and_is_told_so(tmp_path):
    made = Federation(tmp_path)
    key = SigningKey.generate()

    def replace():
        made.revoked.add("d")
        made.cut("d")
        made.grid.nodes[99] = signing_site("d", key)

    made.script = {1: lambda: made.cut("c"), 2: replace}
    coordinator = made.run(rounds=3, find_site={99: "d"}.get)
    assert [row["nodes_accepted"] for row in coordinator.rows] == [3, 2, 2]
    assert [event[1:] for event in made.watcher.events if event[0] == "away"] == [(99, f"d: {REVOKED}", "d")]


def test_a_site_revoked_while_the_run_waits_for_it_is_awaited_no_longer(tmp_path):
    made = Federation(tmp_path)
    made.cut("d")
    made.revoked.add("d")
    coordinator = made.run(join_timeout_s=600.0)
    assert [row["nodes_accepted"] for row in coordinator.rows] == [3, 3, 3]
    assert made.clock.now < 30


def test_once_all_were_revoked_the_run_ends_and_says_so(tmp_path):
    made = Federation(tmp_path)
    made.script = {3: lambda: made.revoked.update(NAMES)}
    with pytest.raises(FederationError, match="a was revoked"):
        made.run(rounds=4)


def test_seals_wait_for_no_absent_site(tmp_path):
    made = Federation(tmp_path)
    made.script = {2: lambda: made.cut("d")}
    coordinator = made.run(rounds=4, log=tmp_path / "log.sqlite")
    assert made.clock.now - sum(seconds(coordinator)) < 2


def test_the_events_of_a_run_say_who_is_away_since_when(tmp_path):
    made = Federation(tmp_path)
    log = RunLog(tmp_path, made.clock)
    begin = log.round_started

    def started(number, sampled):
        begin(number, sampled)
        made._act("started", number)

    log.round_started = started
    made.script = {2: lambda: made.cut("d"), 3: lambda: made.revoked.add("c")}
    made.run(listener=log)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    offline, absent = (e for e in events if e["event"] in ("offline", "absent"))
    assert offline["since"] == absent["since"] == offline["time"] < absent["time"]
    assert (absent["round"], absent["node"]) == (2, "d")
    assert [(e["round"], e["node"], e["reason"]) for e in events if e["event"] == "revoked"] == [(3, "c", REVOKED)]
    assert [e["sites"] for e in events if e["event"] == "asked"] == [[*"abcd"], [*"abcd"], [*"abc"]]


def test_a_refusal_is_told_by_the_site_s_name(tmp_path):
    made = Federation(tmp_path)
    reason = "refused by rule steps: steps: 20, and steps_at_most is 5"
    made.grid.nodes[IDS["d"]] = lambda message: Message(
        Error(code=int(ErrorCode.MOD_FAILED_PRECONDITION), reason=reason), reply_to=message
    )
    made.run(rounds=1, find_site={IDS["d"]: "d"}.get, log=tmp_path / "log.sqlite")
    assert [event[1:] for event in made.watcher.events if event[0] == "refused"] == [(IDS["d"], reason, "d")]
    assert [entry["site"] for entry in written(tmp_path / "log.sqlite") if entry["kind"] == "declined"] == ["d"]


def test_a_signed_reply_names_the_site_that_is_turned_away(tmp_path):
    made = Federation(tmp_path)
    made.grid.nodes[IDS["d"]] = signing_site("d", KEYS["d"], layout="0" * 64)
    made.run(rounds=1, join_timeout_s=5.0)
    (told,) = {event[1:] for event in made.watcher.events if event[0] == "away"}
    assert (told[0], told[2]) == (IDS["d"], "d")
    assert "another layout" in told[1]


def test_a_resumed_run_waits_no_longer_for_an_absent_site_than_a_round(tmp_path):
    first = Federation(tmp_path)
    first.script = {3: lambda: first.cut(*NAMES)}
    with pytest.raises(FederationError):
        first.run(rounds=4, round_timeout_s=5.0)
    again = Federation(tmp_path)
    again.cut("d")
    coordinator = again.run(rounds=4, round_timeout_s=5.0, resume=True)
    assert [row["nodes_accepted"] for row in coordinator.rows] == [4, 4, 3, 3]
    assert 120 <= again.clock.now < 135
    fresh = Federation(tmp_path / "fresh")
    fresh.cut("d")
    fresh.run(rounds=1)
    assert fresh.clock.now >= 600, "a new run gives each site its time"
