"""Histories that are unusual and correct: verification must raise no false alarm."""

import random
import shutil

import pytest
from audited_run import Chain, kept_run, small_nodes
from custodies import MECHANISM, SERVER, custody
from fake_grid import FakeGrid, Watcher, answering, errs, federate, plan, spoiled
from tiny_federation import tiny_node

from fedglm.audit.records.checks import Verdict, select_failed
from fedglm.audit.verify import verification
from fedglm.audit.verify.verification import verify
from fedglm.autoglm.training.local import TrainingError
from fedglm.client import gate, local_trainer
from fedglm.privacy.accounting.accountant import compute_epsilon
from fedglm.privacy.custody.site_log import CustodyLog, Release
from fedglm.privacy.errors import LogError
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.signed_log import SignedLog
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.policy_file import sign_policy
from fedglm.run_folder.rows import to_lines
from fedglm.server import run_setup
from fedglm.server.coordinator import Coordinator
from fedglm.server.rounds import countersigning

pytestmark = pytest.mark.usefixtures("unsynced")

SITES = "abc"


def nodes(folder, **policies):
    return small_nodes(folder / "nodes", **policies)


def run(folder, made=None, **changes):
    return kept_run(folder, made or nodes(folder), **changes)


def assert_whole(folder):
    assert select_failed(verify(folder).checks) == []


class Killed(Exception):
    """Somebody pulled the plug."""


@pytest.mark.parametrize(
    ("event", "server_round"),
    [  # each event, and each round: the first, one in between, the last
        ("started", 1),
        ("reply", 2),
        ("done", 3),
        *(
            pytest.param(event, server_round, marks=pytest.mark.slow)
            for event, server_round in [
                ("reply", 1),
                ("done", 1),
                ("started", 2),
                ("done", 2),
                ("started", 3),
                ("reply", 3),
            ]
        ),
    ],
)
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
            seen.append(select_failed(verify(tmp_path).checks))

    run(tmp_path, hook=look, rounds=2)
    assert seen == [[], []]


def test_sites_that_fail_refuse_and_run_out_of_budget(tmp_path):
    two = compute_epsilon([MECHANISM.event()] * 2, 1e-3).epsilon
    made = nodes(tmp_path, b={"epsilon": two + 0.02})
    made[10] = spoiled(made[10], errs)
    run(tmp_path, made)
    assert_whole(tmp_path)


def test_a_site_with_a_new_key_and_a_new_policy_between_two_runs(tmp_path):
    run(tmp_path, rounds=1)
    folder = tmp_path / "nodes" / "a" / "custody"
    (folder / "site.key").unlink()
    key = SigningKey.create(folder / "site.key")
    looser = custody_policy(folder).model_copy(update={"epsilon": 60.0})
    (folder / "policy.toml").write_text(looser.to_toml())
    sign_policy(folder / "policy.toml", key)
    second = tmp_path / "second"
    run(second, nodes(tmp_path), rounds=1)
    assert select_failed(verify(folder, server=second).checks) == []
    assert select_failed(verify(tmp_path, keys=[key.public]).checks) == []
    # Nobody vouched for it, and the first server has never seen it.
    (wrong,) = select_failed(verify(tmp_path).checks)
    assert (wrong.subject, wrong.name) == ("a", "key")
    assert "no old key vouched for this one" in wrong.detail


def custody_policy(folder):
    return Policy.from_toml((folder / "policy.toml").read_text())


def test_a_site_in_two_federations(tmp_path):
    """Two servers, one ledger: each server's log is held to the site's."""
    run(tmp_path, rounds=1)
    other = tmp_path / "other"
    run(other, nodes(tmp_path), key=SERVER, rounds=1)
    for server in (tmp_path, other):
        for name in SITES:
            assert select_failed(verify(tmp_path / "nodes" / name, server=server).checks) == []


def test_a_run_without_noise(tmp_path):
    run(tmp_path, nodes(tmp_path, private=False), mechanism=None, rounds=1)
    assert_whole(tmp_path)
    open_checks = {check.name for check in verify(tmp_path).checks if check.passed is None}
    assert {"epsilon", "anchors"} <= open_checks


def test_a_node_that_was_killed_between_charge_and_entry(tmp_path):
    run(tmp_path, rounds=1)
    folder = tmp_path / "nodes" / "a" / "custody"
    site = custody(folder, private=True)
    charge = site.make_charge("later", 1, MECHANISM, "0" * 64, "1" * 64, purpose="update", attempt="1" * 32)
    site.ledger.charge(charge, None)
    verification = verify(tmp_path)
    assert select_failed(verification.checks) == []
    (ledger,) = [check for check in verification.checks if (check.subject, check.name) == ("a", "ledger")]
    assert (ledger.passed, "the node was killed there, or the log was cut" in ledger.detail) == (None, True)


def test_training_that_met_data_and_then_failed(tmp_path, monkeypatch):
    """A row of the ledger for which nothing left; the site is asked again, and takes part again later."""
    original, calls = local_trainer.train_privately, []

    def fails(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:  # one of the sites, in the second round
            raise TrainingError("a trained weight is not finite")
        return original(*arguments, **options)

    monkeypatch.setattr(local_trainer, "train_privately", fails)
    run(tmp_path)
    verification = verify(tmp_path)
    assert verification.verdict is Verdict.WHOLE
    charged = [entry for site in verification.sites for entry in site.read_entries("charged")]
    assert len(charged) == 1
    (received,) = [check.detail for check in verification.checks if "not folded in" in check.detail]
    assert received.startswith("2 updates are those that the site released; 1 more were charged for")


def test_a_site_that_never_seals(tmp_path):
    made = nodes(tmp_path)

    def deaf(message, answer=made[8]):
        return None if message.metadata.message_type == "query.seal" else answer(message)

    made[8] = deaf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(countersigning, "_PATIENCE_S", 0.3)
        run(tmp_path, made, rounds=1)
    assert_whole(tmp_path)
    details = {check.detail for check in verify(tmp_path).checks if check.passed is None}
    assert any("nobody has countersigned" in words for words in details)


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


def losing(answer, number):
    """The node, but its answer to the `number`-th seal is lost after it has written it down."""
    seals = []

    def act(message):
        reply = answer(message)
        if message.metadata.message_type == "query.seal":
            seals.append(1)
            if len(seals) == number:
                return None
        return reply

    return act


@pytest.mark.parametrize("number", [1, 2])
def test_an_answer_to_a_seal_that_was_lost(tmp_path, monkeypatch, number):
    monkeypatch.setattr(countersigning, "_PATIENCE_S", 0.3)
    made = nodes(tmp_path)
    made[10] = losing(made[10], number)
    run(tmp_path, made, seal_every=1, rounds=2)
    assert_whole(tmp_path)


def test_a_policy_that_was_changed_and_changed_back(tmp_path):
    folder = tmp_path / "nodes" / "a" / "custody"
    for number, epsilon in enumerate((50.0, 60.0, 50.0)):
        made = nodes(tmp_path)
        policy = custody_policy(folder).model_copy(update={"epsilon": epsilon})
        (folder / "policy.toml").write_text(policy.to_toml())
        sign_policy(folder / "policy.toml", SigningKey.load(folder / "site.key"))
        made[10] = answering(tiny_node(tmp_path / "nodes", "a", data_seed=0, rows=20), private=True)
        run(tmp_path / f"run-{number}", made, rounds=1)
        assert select_failed(verify(folder).checks) == []


def test_a_node_whose_log_cannot_be_written_three_times(tmp_path, monkeypatch):
    run(tmp_path)
    folder, seen = tmp_path / "nodes" / "a" / "custody", []
    SignedLog(folder / "log.sqlite", on_entry=seen.append)
    plan_sha256, name = next((e["plan"], e["run"]) for e in seen if e["kind"] == "release")
    for number in range(3):
        site = custody(folder, private=True)
        charge = site.make_charge(
            name, number + 1, MECHANISM, plan_sha256, f"{number:064x}", purpose="update", attempt=f"{number:032x}"
        )

        def full(*_arguments, **_options):
            raise LogError("the disk is full")

        with monkeypatch.context() as patch:
            puts = []
            original = SignedLog._write_entries

            def put(*arguments, original=original, puts=puts, first=number):
                puts.append(1)
                return original(*arguments[1:]) if len(puts) == 1 and first else full()

            patch.setattr(SignedLog, "_write_entries", put)
            with pytest.raises(LogError, match="the disk is full"):
                site.charge(Release(charge, 100))
    verification = verify(folder)
    assert select_failed(verification.checks) == []


def test_keys_made_anew_vouch_for_each_other(tmp_path):
    run(tmp_path, rounds=1)
    folder = tmp_path / "nodes" / "a" / "custody"
    old = SigningKey.load(folder / "site.key")
    (folder / "site.key").unlink()
    new = SigningKey.create(folder / "site.key")
    CustodyLog(folder / "log.sqlite", new, old)
    sign_policy(folder / "policy.toml", new)
    assert select_failed(verify(tmp_path).checks) == []
    details = {check.name: check.detail for check in verify(folder).checks}
    assert "changed 1 times" in details["key"]


def test_updates_of_zeros_are_the_same_bytes_in_each_round(tmp_path):
    """Without noise and at no learning rate, a node sends the same bytes in each round; each is a release."""
    folder = tmp_path / "still"
    made = {10 - i: answering(tiny_node(folder / "nodes", name, data_seed=i, rows=20)) for i, name in enumerate(SITES)}
    federate(folder, made, log=folder / "audit" / "log.sqlite", learning_rate=1e-30, rounds=2)
    assert_whole(folder)


def test_a_site_that_refuses_the_plan_took_no_part(tmp_path):
    run(tmp_path, nodes(tmp_path, b={"steps_at_most": 1}), rounds=1)
    assert_whole(tmp_path)
    (sites,) = [check for check in verify(tmp_path).checks if check.name == "sites"]
    assert "all 2 that took part are here; b took no part" in sites.detail


def test_a_run_that_goes_on_with_other_code_has_another_plan(tmp_path, monkeypatch):
    def pull(kind, *details):
        if kind == "done" and details[0] == 1:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, hook=pull, rounds=2)
    for module in (run_setup, gate):
        monkeypatch.setattr(module, "code_sha256", lambda: "7" * 64)
    run(tmp_path, nodes(tmp_path), resume=True, rounds=2)
    assert_whole(tmp_path)


def test_logs_that_seal_each_other_while_they_are_read(tmp_path, monkeypatch):
    """The server's is read before a seal, the sites' after it."""
    run(tmp_path, seal_every=1, rounds=1)
    log, later = tmp_path / "audit" / "log.sqlite", tmp_path / "later.sqlite"
    shutil.copy(log, later)
    seen = []

    def read(path, *args, original=verification.audit_server):
        if not seen:
            chain = Chain(path)
            chain.texts = chain.texts[: next(n for n, text in enumerate(chain.texts) if '"finished"' in text)]
            chain.write(chain=True, key=SERVER)
        verification = original(path, *args)
        if not seen:
            shutil.copy(later, log)
        seen.append(verification)
        return verification

    monkeypatch.setattr(verification, "audit_server", read)
    (tmp_path / "summary.json").unlink()
    assert_whole(tmp_path)
    assert len(seen) == 2
