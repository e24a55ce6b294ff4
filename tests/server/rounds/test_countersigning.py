"""Seals between server and sites: what a party gone wrong can do to the other, which is nothing."""

import base64

import pytest
from audited_run import kept_run, small_nodes
from custodies import SERVER, custody
from fake_grid import errs
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from ledgers import sha256

from fedglm.audit.records.checks import select_failed
from fedglm.audit.verify.verification import verify
from fedglm.privacy.custody import tree_heads
from fedglm.privacy.errors import Refusal
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.signed_log import SignedLog
from fedglm.privacy.log.tree_head import SignedTreeHead
from fedglm.privacy.policy.run_plan import SignedPlan
from fedglm.protocol.messages import RECORD

pytestmark = pytest.mark.usefixtures("unsynced")

MOMENT = "2027-01-04T10:00:00+00:00"


def run(folder, spoil, kinds=("train",), rounds=2):
    """A run of a, b and c, of which a's answers to some messages, or in round 2, are `spoil(reply, message)`."""
    made = small_nodes(folder / "nodes")
    right = made[10]

    def act(message):
        reply, kind = right(message), message.metadata.message_type
        wanted = kind in kinds and (kind != "train" or message.metadata.group_id == "2")
        return spoil(reply, message) if wanted else reply

    made[10] = act
    return kept_run(folder, made, rounds=rounds)


def slow(*cases):
    """Cases that end in a branch which another takes too."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


def saying(name, value):
    def spoil(reply, _message):
        reply.content.config_records[RECORD][name] = value
        return reply

    return spoil


@pytest.mark.parametrize("anchor", ["nonsense", "-1:" + "0" * 32, *slow("1:" + "g" * 32, "")])
def test_an_anchor_that_is_none_is_rejected_and_the_run_goes_on(tmp_path, anchor):
    coordinator = run(tmp_path, saying("log", anchor))
    assert coordinator.rows[1]["nodes_rejected"] == 1
    assert select_failed(verify(tmp_path).checks) == []


def test_a_refusal_in_words_of_no_rule_does_the_server_no_harm(tmp_path):
    def refuses(_reply, message):
        code = int(ErrorCode.MOD_FAILED_PRECONDITION)
        return Message(Error(code, f"refused by rule {'x' * 300}: no"), reply_to=message)

    assert run(tmp_path, refuses).rows[1]["nodes_rejected"] == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("countersignature", "zz"),
        ("countersignature", "00" * 64),
        ("signature", "00" * 64),
        ("key", "0" * 64),
        ("root", sha256("other")),
        ("size", 10**6),
        ("made", "now"),
        *slow(("countersignature", "AB" * 64), ("key", "x"), ("log", "x")),  # malformed, as others are
    ],
)
def test_a_seal_that_is_none_is_left_out_and_the_others_are_kept(tmp_path, name, value):
    run(tmp_path, saying(name, value), kinds=("query.seal",), rounds=1)
    found = verify(tmp_path)
    assert select_failed(found.checks) == []
    held = {check.subject for check in found.checks if check.name == "countersignature" and check.passed}
    assert held == {"server", "b", "c"}


def test_a_site_that_fails_at_the_seal(tmp_path):
    run(tmp_path, errs, kinds=("query.seal",), rounds=1)
    assert select_failed(verify(tmp_path).checks) == []


# --- what a server gone wrong asks of a site


@pytest.fixture
def site(tmp_path):
    run(tmp_path, lambda reply, _message: reply)
    return custody(tmp_path / "nodes" / "a" / "custody", private=True)


def plan_of(tmp_path):
    entries = []
    SignedLog(tmp_path / "nodes" / "a" / "custody" / "log.sqlite", on_entry=entries.append)
    (entry,) = [found for found in entries if found["kind"] == "plan"]
    return SignedPlan.from_bytes(base64.b64decode(entry["signed"])), entries


def checkpoint(log, size=5, key=SERVER):
    return SignedTreeHead.sign(log, size, sha256(size), MOMENT, key)


def test_a_server_cannot_make_a_site_keep_a_checkpoint_that_it_never_signed(tmp_path, site):
    signed, entries = plan_of(tmp_path)
    log = next(found["log"] for found in entries if found["kind"] == "witnessed")
    forged = SignedTreeHead(site.log.origin, 3, sha256("forged"), MOMENT, "0" * 128)
    other = checkpoint(site.log.origin, 3, SigningKey.generate())
    for own in (forged, other):
        with pytest.raises(Refusal, match="no checkpoint of this log"):
            site.log.exchange_tree_heads(signed, checkpoint(log, 90), (own, own.countersign(SERVER)))
    assert select_failed(verify(tmp_path).checks) == []


def test_a_server_cannot_show_another_log_or_fill_the_disk(tmp_path, site, monkeypatch):
    signed, entries = plan_of(tmp_path)
    log = next(found["log"] for found in entries if found["kind"] == "witnessed")
    with pytest.raises(Refusal, match="another than before"):
        site.log.exchange_tree_heads(signed, checkpoint(sha256("another log")), None)
    with pytest.raises(Refusal, match="not signed by the key that signed the plan"):
        site.log.exchange_tree_heads(signed, checkpoint(log, 91, SigningKey.generate()), None)
    before = site.log.head.rows
    for _ in range(5):  # the same again adds nothing
        site.log.exchange_tree_heads(signed, checkpoint(log, 92), None)
    assert site.log.head.rows == before + 1
    monkeypatch.setattr(tree_heads, "MAX_WITNESSED_HEADS", 3)
    with pytest.raises(Refusal, match="more than 3 checkpoints"):
        site.log.exchange_tree_heads(signed, checkpoint(log, 93), None)
