"""The one door out of the node: what it lets through, what it refuses, what it charges, what it writes down."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from custodies import MECHANISM, announced, custody, run_plan
from plans import change_plan

from fedglm.autoglm.tasks.evaluation import Evaluation
from fedglm.autoglm.training.local import TrainingError
from fedglm.client.exchange import NodeResult
from fedglm.client.flower_records import to_records
from fedglm.client.gate import OutboundGate
from fedglm.client.no_answer import Withheld
from fedglm.client.plan_checks import MAX_OVERHEAD_BYTES
from fedglm.compression.codec import make_codec
from fedglm.privacy.accounting.accountant import compute_epsilon
from fedglm.privacy.custody.site_log import Release
from fedglm.privacy.custody.transaction import ReleaseTransaction
from fedglm.privacy.dp.mechanism import make_metrics_mechanism
from fedglm.privacy.errors import LedgerError, Refusal
from fedglm.privacy.log.chained_file import Head
from fedglm.protocol.messages import RECORD, UPDATE, TrainReply, TrainRequest

SIZE = 40
LAYOUT = "a" * 64
REPORT = TrainReply(nonce="n")
BLOB = make_codec("dense-fp32").encode(np.linspace(-1, 1, SIZE, dtype=np.float32))
OTHER = make_codec("dense-fp32").encode(np.linspace(-2, 2, SIZE, dtype=np.float32))
INSTRUCTION = TrainRequest(
    run="run-1", round=1, nonce="n", layout=LAYOUT, version=0, acknowledged=0, learning_rate=0.1, evaluate=False
)
METRICS = ("loss", "metric", "count")
MEASURING = make_metrics_mechanism(MECHANISM, 20.0)


class Door:
    """A gate, and what lies behind it."""

    def __init__(self, folder, *, mechanism=None, plan=None, **policy):
        self.custody = custody(folder / "site-1" / "custody", private=mechanism is not None, **policy)
        self.gate = OutboundGate(self.custody, folder)
        self.plan = run_plan(LAYOUT, parameters=SIZE, codec="dense-fp32", mechanism=mechanism, **(plan or {}))

    def opened(self):
        self.gate.admit(announced(self.plan))
        return self

    @property
    def charges(self):
        return [row.charge for row in self.custody.ledger.rows()]

    @property
    def refusals(self):
        return [(entry.rule, entry.run, entry.round) for entry in self.custody.refusals.entries()]


@pytest.fixture
def door(tmp_path):
    return Door(tmp_path).opened()


@pytest.fixture
def private(tmp_path):
    return Door(tmp_path, mechanism=MECHANISM).opened()


def later(number):
    return replace(INSTRUCTION, round=number, evaluate=True)


def update(blob=BLOB, evaluation=None, noise=None, evaluation_noise=None, attempt="a" * 32):
    """What a node has made of data: an update, and measures beside it where there are any."""
    purposes = ("update",) if evaluation is None else ("update", "metrics")
    return NodeResult(REPORT, blob, evaluation, noise, evaluation_noise, attempt, purposes)


def withheld_by(gate, outcome, instruction=INSTRUCTION):
    """Why an answer stays in, which the server is not told."""
    with pytest.raises(Withheld) as caught:
        gate.release(outcome, instruction)
    cause = caught.value.__cause__
    return cause.rule if isinstance(cause, Refusal) else type(cause)


def refusal_of(act, *args):
    with pytest.raises(Refusal) as caught:
        act(*args)
    assert str(caught.value).startswith(f"refused by rule {caught.value.rule}: ")
    return caught.value.rule


# --- what leaves


def test_a_good_update_passes_as_it_is(door):
    content = to_records(door.gate.release(update(), INSTRUCTION))
    assert set(content) == {RECORD}
    assert dict(content[RECORD]) == {"nonce": "n", UPDATE: BLOB}


def test_a_request_for_a_snapshot_carries_nothing_else_and_costs_nothing(private):
    content = to_records(private.gate.release(NodeResult(TrainReply(nonce="n", holds=-1)), INSTRUCTION))
    assert {name: dict(record) for name, record in content.items()} == {RECORD: {"nonce": "n", "holds": -1}}
    assert private.charges == []


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        BLOB[:-1],
        BLOB + b"\0",
        bytes([BLOB[0] ^ 1]) + BLOB[1:],
        make_codec("dense-fp32").encode(np.ones(SIZE + 1, np.float32)),
        make_codec("topk-fp16").encode(np.ones(SIZE, np.float32)),
    ],
    ids=["empty", "short", "long", "flipped", "other-size", "another codec than the plan's"],
)
def test_what_does_not_decode_stays_in(door, blob):
    assert withheld_by(door.gate, update(blob)) == "well-formed"
    assert door.refusals == [("well-formed", "run-1", 1)]


def test_more_bytes_than_the_model_stay_in(door):
    assert withheld_by(door.gate, update(bytes(4 * SIZE + MAX_OVERHEAD_BYTES + 1))) == "size"


def test_more_bytes_than_the_policy_permits_stay_in_and_are_charged_once(tmp_path):
    """How many bytes an update has follows from noise that met data, and so does that it stays in."""
    door = Door(tmp_path, mechanism=MECHANISM, bytes_at_most=100).opened()
    for _ in range(3):
        assert withheld_by(door.gate, update(noise=MECHANISM)) == "bytes"
    assert [(charge.mechanism, charge.id) for charge in door.charges] == [(MECHANISM, "a" * 32)]
    assert withheld_by(door.gate, update(noise=MECHANISM, attempt="b" * 32)) == "bytes"
    assert len(door.charges) == 2


def test_an_attempt_that_failed_is_charged_once_for_all_that_it_was_for(tmp_path):
    door = Door(tmp_path, mechanism=MECHANISM, metrics=METRICS, plan={"metrics": MEASURING}).opened()
    purposes = ("update", "metrics")
    failed = NodeResult(REPORT, None, None, MECHANISM, MEASURING, "a" * 32, purposes, TrainingError("not finite"))
    for _ in range(2):
        assert withheld_by(door.gate, failed) is TrainingError
    assert [(c.purpose, c.mechanism) for c in door.charges] == [("update", MECHANISM), ("metrics", MEASURING)]
    alone = NodeResult(REPORT, None, None, None, MEASURING, "b" * 32, ("metrics",), TrainingError("not finite"))
    assert withheld_by(door.gate, alone) is TrainingError
    assert [charge.purpose for charge in door.charges[2:]] == ["metrics"]


def test_metrics_leave_only_where_the_site_lets_them(tmp_path):
    measured = update(evaluation=Evaluation(loss=0.5, metric=0.75, count=8))
    willing = Door(tmp_path / "a", metrics=METRICS).opened()
    assert willing.gate.release(measured, INSTRUCTION).metrics == {"loss": 0.5, "metric": 0.75, "count": 8}
    assert withheld_by(Door(tmp_path / "b").opened().gate, measured) == "metrics"


def test_exact_metrics_never_leave_under_a_plan_with_noise(tmp_path):
    door = Door(tmp_path, mechanism=MECHANISM, metrics=METRICS).opened()
    assert refusal_of(door.gate.authorize, replace(INSTRUCTION, evaluate=True)) == "metrics"
    for plan in ({}, {"metrics": MEASURING}):
        door = Door(tmp_path / str(len(plan)), mechanism=MECHANISM, metrics=METRICS, plan=plan).opened()
        measured = update(evaluation=Evaluation(loss=0.5, metric=0.75, count=8), noise=MECHANISM)
        assert withheld_by(door.gate, measured) == "metrics"


def test_noised_metrics_leave_and_are_charged_with_the_update_they_come_with(tmp_path):
    door = Door(tmp_path, mechanism=MECHANISM, metrics=METRICS, plan={"metrics": MEASURING}).opened()
    asked = replace(INSTRUCTION, evaluate=True)
    authorization = door.gate.authorize(asked)
    assert (authorization.mechanism, authorization.metrics_mechanism) == (MECHANISM, MEASURING)
    authorization.check_budget()
    measured = update(BLOB, Evaluation(loss=0.5, metric=0.75, count=8), MECHANISM, MEASURING)
    for _ in range(2):  # the second time is a retry
        content = door.gate.release(measured, asked)
        assert content.metrics == {"loss": 0.5, "metric": 0.75, "count": 8}
        assert [(c.purpose, c.mechanism) for c in door.charges] == [("update", MECHANISM), ("metrics", MEASURING)]
    alone = NodeResult(REPORT, None, measured.evaluation, None, MEASURING, "b" * 32, ("metrics",))
    door.gate.release(alone, later(2))
    assert [(c.purpose, c.round) for c in door.charges[2:]] == [("metrics", 2)]


def test_what_cannot_be_afforded_together_costs_nothing(tmp_path):
    """The budget holds the update, and not the measures beside it."""
    loud = replace(MEASURING, noise_multiplier=1.0)
    alone = compute_epsilon([MECHANISM.event()], 1e-3).epsilon
    both = compute_epsilon([MECHANISM.event(), loud.event()], 1e-3).epsilon
    door = Door(tmp_path, mechanism=MECHANISM, metrics=METRICS, epsilon=both, plan={"metrics": loud}).opened()
    tight = replace(door.custody, policy=door.custody.policy.model_copy(update={"epsilon": (alone + both) / 2}))
    ReleaseTransaction(tight.ledger, tight.log).activate_policy(tight.policy)
    gate = OutboundGate(tight, tmp_path / "other")
    with pytest.raises(Refusal, match="epsilon-budget"):
        gate.admit(announced(door.plan))
    charges = [
        tight.make_charge("r", 1, m, "0" * 64, f"{m.steps:064x}", purpose="update", attempt=f"{m.steps:032x}")
        for m in (MECHANISM, loud)
    ]
    with pytest.raises(Refusal, match="epsilon-budget"):
        tight.charge(*(Release(charge, 100) for charge in charges))
    assert door.charges == []


@pytest.mark.parametrize(
    "change",
    [{"noise_multiplier": 1.4}, {"clipping_norm": 2.0}, {"sampling_rate": 0.1}, {"unit": "visit"}, None],
    ids=["less noise", "another norm", "another rate", "another unit", "none"],
)
def test_an_update_that_was_noised_otherwise_than_planned_stays_in(private, change):
    noise = None if change is None else replace(MECHANISM, **change)
    assert withheld_by(private.gate, update(noise=noise)) == "plan"


def test_an_update_is_charged_by_the_noise_that_it_has(private):
    louder = replace(MECHANISM, noise_multiplier=9.0)
    private.gate.release(update(noise=louder), INSTRUCTION)
    (charge,) = private.charges
    assert charge.mechanism == louder
    assert charge.policy == private.custody.policy.sha256


# --- what it costs


def test_an_update_is_charged_before_it_leaves_and_its_repetition_is_not(private):
    first = private.gate.release(update(noise=MECHANISM), INSTRUCTION)
    again, third = (private.gate.release(update(noise=MECHANISM), INSTRUCTION) for _ in range(2))
    # But for where the log stands, which shows that it was sent again.
    assert replace(first, reply=replace(first.reply, log="")) == replace(again, reply=replace(again.reply, log=""))
    assert again == third
    (charge,) = private.charges
    assert (charge.run, charge.round, charge.purpose) == ("run-1", 1, "update")
    assert (charge.mechanism, charge.plan) == (MECHANISM, private.plan.sha256)
    private.gate.release(update(OTHER, noise=MECHANISM, attempt="b" * 32), INSTRUCTION)  # the same round, fresh noise
    assert len(private.charges) == 2
    private.gate.release(update(noise=MECHANISM, attempt="c" * 32), INSTRUCTION)  # the first bytes, by fresh noise
    assert len(private.charges) == 3


def test_a_charge_that_cannot_be_written_keeps_the_update_in(private, monkeypatch):
    def broken(*_):
        raise LedgerError("the disk is full")

    monkeypatch.setattr(type(private.custody.ledger), "charge", broken)
    assert withheld_by(private.gate, update(noise=MECHANISM)) is LedgerError


def test_when_the_budget_is_spent_the_node_refuses_before_it_trains(tmp_path):
    door = Door(tmp_path, mechanism=MECHANISM, epsilon=8.0).opened()
    sent = 0
    for number in range(1, 100):
        instruction = replace(INSTRUCTION, round=number)
        authorization = door.gate.authorize(instruction)
        with contextlib.suppress(Refusal):
            authorization.check_budget()
            sent += 1
        if sent < number:
            break
        door.gate.release(update(coded(number), noise=MECHANISM, attempt=f"{number:032x}"), instruction)
    assert 0 < sent < 99
    assert refusal_of(authorization.check_budget) == "epsilon-budget"
    assert len(door.charges) == sent
    bounds = door.custody.ledger.spending(door.custody.policy.data_set).at(1e-3)
    assert bounds.epsilon <= 8.0
    beyond = update(coded(1000), noise=MECHANISM, attempt=f"{1000:032x}")
    assert withheld_by(door.gate, beyond, instruction) == "epsilon-budget"
    # What was charged may still be sent again.
    assert door.gate.release(update(coded(2), noise=MECHANISM, attempt=f"{2:032x}"), replace(INSTRUCTION, round=2))


def coded(seed):
    return make_codec("dense-fp32").encode(np.random.default_rng(seed).normal(size=SIZE).astype(np.float32))


def test_updates_without_noise_are_remembered_and_end_every_later_promise(tmp_path):
    door = Door(tmp_path).opened()
    door.gate.release(update(), INSTRUCTION)
    assert [charge.mechanism for charge in door.charges] == [None]
    # The same data, now under a policy with a budget, and with another name.
    promise = replace(door.custody, policy=custody(tmp_path / "b" / "custody", private=True).policy)
    later = OutboundGate(promise, tmp_path)
    later.admit(announced(change_plan(door.plan, run="run-2", mechanism=MECHANISM, noise_at_most=3.0)))
    assert refusal_of(later.authorize(replace(INSTRUCTION, run="run-2")).check_budget) == "epsilon-budget"


# --- what it holds the server to


def test_without_a_plan_nothing_is_done(tmp_path):
    door = Door(tmp_path)
    assert refusal_of(door.gate.authorize, INSTRUCTION) == "plan"
    assert withheld_by(door.gate, update()) == "plan"
    assert door.refusals == [("plan", "run-1", 1)] * 2


@pytest.mark.parametrize(
    "change", [{"run": "run-2"}, {"layout": "b" * 64}, {"round": 101}], ids=["run", "layout", "round"]
)
def test_an_instruction_that_is_not_of_the_plan_is_refused(door, change):
    assert refusal_of(door.gate.authorize, replace(INSTRUCTION, **change)) == "plan"


def test_a_plan_that_breaks_the_policy_is_refused_logged_and_not_pinned(tmp_path):
    door = Door(tmp_path, mechanism=MECHANISM)
    door.plan = change_plan(door.plan, mechanism=replace(MECHANISM, noise_multiplier=0.5))
    assert refusal_of(door.opened) == "noise-multiplier"
    assert door.refusals == [("noise-multiplier", "run-1", 0)]
    assert refusal_of(door.gate.authorize, INSTRUCTION) == "plan"


def test_a_plan_without_noise_needs_a_policy_that_says_so(tmp_path):
    door = Door(tmp_path, mechanism=MECHANISM)
    door.plan = change_plan(door.plan, mechanism=None, noise_at_most=None)
    assert refusal_of(door.opened) == "without-differential-privacy"


def test_a_plan_whose_signature_is_wrong_is_refused(tmp_path):
    door = Door(tmp_path)
    blob = announced(door.plan)
    assert refusal_of(door.gate.admit, blob[:40] + bytes([blob[40] ^ 1]) + blob[41:]) == "plan-signature"
    assert door.refusals == [("plan-signature", "", 0)]


def test_a_plan_for_another_unit_than_the_data_are_kept_by_is_refused(tmp_path):
    door = Door(tmp_path, mechanism=replace(MECHANISM, unit="patient"), unit="patient")
    # The policy agrees with the plan, but the records were read without the field.
    door.custody = replace(door.custody, unit="record")
    door.gate = OutboundGate(door.custody, tmp_path)
    assert refusal_of(door.opened) == "unit"


def test_a_policy_that_was_tightened_meanwhile_holds(door, tmp_path):
    tighter = replace(door.custody, policy=door.custody.policy.model_copy(update={"steps_at_most": 1}))
    assert refusal_of(OutboundGate(tighter, tmp_path).authorize, INSTRUCTION) == "steps"


def test_a_policy_that_asks_for_encrypted_state_is_kept(door, tmp_path):
    asking = replace(door.custody, policy=door.custody.policy.model_copy(update={"state_encrypted": True}))
    assert refusal_of(OutboundGate(asking, tmp_path).authorize, INSTRUCTION) == "state-encrypted"
    OutboundGate(asking, tmp_path, encrypted=True).authorize(INSTRUCTION)


def test_a_log_that_was_rolled_back_is_noticed(private):
    before = private.custody.log.head
    private.gate.release(update(noise=MECHANISM), INSTRUCTION)
    after = private.custody.log.head
    for anchor in (before, after):
        private.gate.authorize(replace(INSTRUCTION, anchor=anchor.to_text()))
    ahead = Head(after.rows + 1, after.sha256)
    other = Head(after.rows, "0" * 64)
    for anchor in (ahead, other):
        assert refusal_of(private.gate.authorize, replace(INSTRUCTION, anchor=anchor.to_text())) == "log-anchor"


def test_no_more_answers_are_made_than_the_plan_has_turns(tmp_path):
    door = Door(tmp_path, mechanism=MECHANISM, plan={"rounds": 9, "turns": 2}).opened()
    for number in (1, 2):
        door.gate.authorize(replace(INSTRUCTION, round=number)).check_budget()
        door.gate.release(update(noise=MECHANISM, attempt=f"{number:032x}"), replace(INSTRUCTION, round=number))
    assert refusal_of(door.gate.authorize(replace(INSTRUCTION, round=3)).check_budget) == "plan"


def test_the_terms_of_a_plan_are_permitted_whatever_the_run_is_called(tmp_path):
    plan = Door(tmp_path / "any").plan
    door = Door(tmp_path, plans=(plan.terms_sha256,))
    for run in ("run-1", "another"):
        door.plan = change_plan(plan, run=run)
        door.opened()
    door.plan = change_plan(plan, rounds=plan.spec.rounds + 1)
    assert refusal_of(door.opened) == "plans"
