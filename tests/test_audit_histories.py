"""Histories that are unusual and right: verification must not cry wolf."""

import json
import random

import pytest
from audited_run import make_run
from custodies import MECHANISM, SERVER, custody
from fake_grid import FakeGrid, Watcher, answering, errs, federate, plan, spoiled
from tiny_federation import tiny_node

from fedglm.privacy.accountant import spent
from fedglm.privacy.audit_checks import failed
from fedglm.privacy.audit_verify import verify
from fedglm.privacy.keys import SigningKey
from fedglm.privacy.policy import Policy, sign_policy
from fedglm.server import sealing
from fedglm.server.coordinator import Coordinator
from fedglm.server.rows import to_lines

SITES = "abc"


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


def nodes(folder, **policies):
    return {
        10 - i: answering(
            tiny_node(folder / "nodes", name, data_seed=i, rows=20), private=True, **policies.get(name, {})
        )
        for i, name in enumerate(SITES)
    }


def run(folder, made=None, **changes):
    log = folder / "audit" / "log.sqlite"
    coordinator, _, _ = federate(folder, made or nodes(folder), mechanism=MECHANISM, log=log, **changes)
    (folder / "rounds.jsonl").write_text(to_lines(coordinator.rows))
    (folder / "summary.json").write_text(json.dumps({"model_sha256": coordinator.model_sha256}))
    return coordinator


def assert_whole(folder):
    assert failed(verify(folder).checks) == []


class Killed(Exception):
    """Somebody pulled the plug."""


@pytest.mark.parametrize("event", ["started", "reply", "done"])
@pytest.mark.parametrize("server_round", [1, 2, 3])
def test_a_server_that_was_killed_and_goes_on(tmp_path, event, server_round):
    def pull(kind, *details):
        if kind == event and details[0] == server_round:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, hook=pull)
    run(tmp_path, nodes(tmp_path), resume=True)
    assert_whole(tmp_path)


def test_a_server_that_was_killed_between_its_log_and_its_checkpoint(tmp_path, monkeypatch):
    """The round is in the log, and is begun again: what the nodes send is what they sent before."""
    saves = []

    def save(_self, folder, original=Coordinator._checkpoint):
        saves.append(1)
        if len(saves) == 3:
            raise Killed
        original(_self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Coordinator, "_checkpoint", save)
        with pytest.raises(Killed):
            run(tmp_path)
    run(tmp_path, nodes(tmp_path), resume=True)
    assert_whole(tmp_path)


def test_a_run_that_is_under_way(tmp_path):
    seen = []

    def look(kind, *_):
        if kind == "done":
            seen.append(failed(verify(tmp_path).checks))

    run(tmp_path, hook=look)
    assert seen == [[], [], []]


def test_sites_that_fail_refuse_and_run_out_of_budget(tmp_path):
    two = spent([MECHANISM.event()] * 2, 1e-3).epsilon
    made = nodes(tmp_path, b={"epsilon": two + 0.02})
    made[10] = spoiled(made[10], errs)
    run(tmp_path, made)
    assert_whole(tmp_path)


def test_a_site_with_a_new_key_and_a_new_policy_between_two_runs(tmp_path):
    run(tmp_path)
    folder = tmp_path / "nodes" / "a" / "custody"
    (folder / "site.key").unlink()
    key = SigningKey.create(folder / "site.key")
    looser = custody_policy(folder).model_copy(update={"epsilon": 60.0})
    (folder / "policy.toml").write_text(looser.to_toml())
    sign_policy(folder / "policy.toml", key)
    second = tmp_path / "second"
    run(second, nodes(tmp_path))
    assert_whole(tmp_path)
    assert failed(verify(folder, server=second).checks) == []
    assert failed(verify(folder, keys=[key.public]).checks) == []


def custody_policy(folder):
    return Policy.from_toml((folder / "policy.toml").read_text())


def test_a_site_in_two_federations(tmp_path):
    """Two servers, one ledger: each server's log is held to the site's."""
    run(tmp_path)
    other = tmp_path / "other"
    run(other, nodes(tmp_path), key=SERVER)
    for server in (tmp_path, other):
        for name in SITES:
            assert failed(verify(tmp_path / "nodes" / name, server=server).checks) == []


def test_a_run_without_noise(tmp_path):
    folder = make_run(tmp_path / "run", private=False)
    assert_whole(folder)
    open_checks = {check.name for check in verify(folder).checks if check.held is None}
    assert {"epsilon", "anchors"} <= open_checks


def test_a_node_that_was_killed_between_charge_and_entry(tmp_path):
    run(tmp_path)
    folder = tmp_path / "nodes" / "a" / "custody"
    site = custody(folder, private=True)
    charge = site.charge_of("later", 1, MECHANISM, "0" * 64, "1" * 64, purpose="update")
    site.ledger.charge(charge, None)
    found = verify(tmp_path)
    assert failed(found.checks) == []
    (ledger,) = [check for check in found.checks if (check.subject, check.name) == ("a", "ledger")]
    assert (ledger.held, "the node was killed there, or the log was cut" in ledger.said) == (None, True)


def test_a_site_that_never_seals(tmp_path):
    made = nodes(tmp_path)

    def deaf(message, answer=made[8]):
        return None if message.metadata.message_type == "query.seal" else answer(message)

    made[8] = deaf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealing, "_PATIENCE_S", 0.3)
        run(tmp_path, made)
    assert_whole(tmp_path)
    said = {check.said for check in verify(tmp_path).checks if check.held is None}
    assert any("nobody has countersigned" in words for words in said)


def test_many_random_kills_of_server_and_nodes(tmp_path):
    dice = random.Random(7)  # noqa: S311 - a test's order
    folder = tmp_path / "run"
    finished = False
    for _ in range(30):
        at = dice.randrange(1, 12)
        count = []

        def pull(*_event, count=count, at=at):
            count.append(1)
            if len(count) == at:
                raise Killed

        made = nodes(folder)
        log = folder / "audit" / "log.sqlite"
        coordinator = Coordinator(
            plan(folder, mechanism=MECHANISM, log=log, rounds=5),
            FakeGrid(made, seed=at),
            listener=Watcher(pull),
            resume=any((folder / "checkpoint").glob("*")),
        )
        try:
            coordinator.run()
            finished = True
            break
        except Killed:
            (folder / "rounds.jsonl").write_text(to_lines(coordinator.rows))
            assert_whole(folder)
    if finished:
        (folder / "rounds.jsonl").write_text(to_lines(coordinator.rows))
    assert_whole(folder)
