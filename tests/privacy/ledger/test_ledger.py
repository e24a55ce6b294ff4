"""The ledger counts every release against its data set for life, and knows a retry and an anchor."""

import multiprocessing
import os
import shutil
import stat
import time
from dataclasses import replace

import pytest
from ledgers import DELTA, MECHANISM, budget_for, charge, epsilon_of, sha256, tamper

from fedglm.privacy.errors import LedgerError, PrivacyError, Refusal
from fedglm.privacy.ledger.charges import Budget
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.log.chained_file import Head

FORK = multiprocessing.get_context("fork")

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "ledger.sqlite"


@pytest.fixture
def ledger(path):
    return Ledger.create(path)


# What it keeps.


def test_a_charge_stands_there_for_the_next_process(path, ledger):
    assert ledger.rows() == []
    start = ledger.head
    heads = [ledger.charge(charge(number), None) for number in (1, 2, 3)]
    again = Ledger(path)
    assert [row.charge for row in again.rows()] == [charge(1), charge(2), charge(3)]
    assert [row.number for row in again.rows()] == [1, 2, 3]
    assert [Head(row.number, row.hash) for row in again.rows()] == heads
    assert [row.previous for row in again.rows()] == [start.sha256, *(head.sha256 for head in heads[:2])]
    assert all(row.time.endswith("+00:00") for row in again.rows())
    assert again.head == ledger.head == heads[-1]


def test_the_file_is_its_owner_s_alone_and_alone_in_its_folder(path, ledger):
    ledger.charge(charge(), None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == [path.name]


def test_a_lost_ledger_is_not_replaced_by_an_empty_one(path, ledger):
    with pytest.raises(LedgerError, match="never replaced"):
        Ledger.create(path)
    path.unlink()
    with pytest.raises(LedgerError, match="would forget what was spent"):
        ledger.rows()
    with pytest.raises(LedgerError, match="would forget what was spent"):
        ledger.charge(charge(), None)
    with pytest.raises(LedgerError, match="would forget what was spent"):
        Ledger(path)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("name", ["a b", "50%25", "#?&=", "né'\""])
def test_any_file_name(tmp_path, name):
    Ledger.create(tmp_path / name).charge(charge(), None)
    assert len(Ledger(tmp_path / name).rows()) == 1
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("data_set", "run") for value in ("", "x" * 201, "a\nb", None, 3)),
        *((name, value) for name in ("commitment", "plan", "release") for value in ("", "A" * 64, "a" * 63, None, b"")),
        *(("round", value) for value in (-1, 1.0, True, 2**31, None)),
        *(("purpose", value) for value in ("", "weights", None, [])),
        *(("mechanism", value) for value in ({}, 1, "none")),
    ],
)
def test_a_malformed_charge_is_refused_before_it_is_written(name, value):
    with pytest.raises(PrivacyError, match=name):
        charge(**{name: value})


@pytest.mark.parametrize(("epsilon", "delta"), [(0, 1e-5), (-1, 1e-5), (float("inf"), 1e-5), (1, 0), (1, 0.2)])
def test_a_malformed_budget_is_refused(epsilon, delta):
    with pytest.raises(PrivacyError):
        Budget(epsilon, delta)


def test_rows_in_a_row_are_printed_as_one(ledger):
    for number in (1, 2, 3):
        ledger.charge(charge(number), None)
    ledger.charge(charge(3, purpose="metrics"), None)
    ledger.charge(charge(1, run="run-2"), None)
    ledger.charge(charge(2, run="run-2"), None)
    found = [(s.first.charge.run, s.first.charge.purpose, s.first.number, s.last.number) for s in ledger.summary()]
    assert found == [("run-1", "update", 1, 3), ("run-1", "metrics", 4, 4), ("run-2", "update", 5, 6)]


# The budget.


def test_overspending_is_refused_beforehand_and_nothing_is_written(ledger):
    budget = budget_for(3)
    for number in (1, 2, 3):
        ledger.check_budget(charge(number), budget)
        ledger.charge(charge(number), budget)
    head = ledger.head
    for ask in (ledger.check_budget, ledger.charge):
        with pytest.raises(Refusal, match="refused by rule epsilon-budget") as refusal:
            ask(charge(4), budget)
        assert refusal.value.rule == "epsilon-budget"
    assert ledger.head == head
    assert ledger.spending("notes", sha256("content")).at(DELTA).epsilon == epsilon_of(3) <= budget.epsilon
    weaker = replace(MECHANISM, steps=1, noise_multiplier=100.0)
    ledger.charge(charge(4, mechanism=weaker), budget)  # a smaller charge still fits


def test_the_budget_is_for_life_over_runs_and_federations(path, ledger):
    budget = budget_for(2)
    ledger.charge(charge(1, run="a", plan=sha256("a")), budget)
    Ledger(path).charge(charge(1, run="b", plan=sha256("b")), budget)
    with pytest.raises(Refusal):
        Ledger(path).charge(charge(1, run="c", plan=sha256("c")), budget)


def test_neither_a_record_more_nor_another_name_opens_a_new_budget(ledger):
    budget = budget_for(2)
    ledger.charge(charge(1, data_set="a", commitment=sha256(1)), budget)
    ledger.charge(charge(2, data_set="a", commitment=sha256(2)), budget)
    for name, content in [("a", 3), ("b", 1), ("b", 2)]:
        with pytest.raises(Refusal):
            ledger.check_budget(charge(3, data_set=name, commitment=sha256(content)), budget)
    ledger.charge(charge(3, data_set="b", commitment=sha256(4)), budget)
    # The link may come later, and over several.
    ledger.charge(charge(4, data_set="b", commitment=sha256(2)), None)
    for name, content in [("x", 1), ("x", 2), ("x", 4), ("a", 9), ("b", 9)]:
        assert len(ledger.spending(name, sha256(content)).rows) == 4
    assert ledger.spending("x", sha256(9)).rows == ()
    assert ledger.spending("x", sha256(9)).at(DELTA).epsilon == 0


def test_metrics_are_charged_with_the_updates(ledger):
    budget = budget_for(2)
    ledger.charge(charge(1), budget)
    ledger.charge(charge(1, purpose="metrics"), budget)
    with pytest.raises(Refusal):
        ledger.charge(charge(2), budget)


def test_what_left_without_noise_is_never_forgotten(ledger):
    budget = budget_for(2)
    with pytest.raises(Refusal, match="without noise"):
        ledger.charge(charge(1, mechanism=None), budget)
    ledger.charge(charge(1, mechanism=None), None)
    assert ledger.spending("notes", sha256("content")).at(DELTA).epsilon == float("inf")
    with pytest.raises(Refusal, match="without noise before"):
        ledger.charge(charge(2), budget)
    ledger.charge(charge(2, data_set="other", commitment=sha256("other")), budget)


def test_a_refusal_tells_nobody_what_was_spent_before(ledger):
    ledger.charge(charge(1), None)
    with pytest.raises(Refusal) as refusal:
        ledger.charge(charge(2), Budget(1.0, DELTA))
    assert refusal.value.reason == "with what was spent before, this release would exceed epsilon 1 at delta 1e-05"


def test_the_last_charge_costs_what_the_first_did(ledger):
    """Each looks only at what is new, and equal rounds are one entry to the accountants."""
    mechanism = replace(MECHANISM, noise_multiplier=20.0)

    def seconds(count):
        start = time.process_time()
        for number in range(count):
            ledger.charge(charge(number, mechanism=mechanism), Budget(8.0, DELTA))
        return time.process_time() - start

    seconds(5)
    first = seconds(20)
    seconds(150)
    assert seconds(20) < 5 * first


# Retries and anchors.


def test_a_retry_is_known_by_its_attempt_and_not_by_its_bytes(ledger):
    first = charge(1, id="a" * 32)
    ledger.charge(first, None)
    assert ledger.has_charged(replace(first, round=2))
    assert not ledger.has_charged(replace(first, id="b" * 32))
    assert not ledger.has_charged(replace(first, purpose="metrics"))
    with pytest.raises(PrivacyError, match="charged once"):
        ledger.charge(first, None)
    ledger.charge(replace(first, id="b" * 32), None)
    assert len(ledger.rows()) == 2


def test_an_anchor_is_held_by_the_ledger_that_gave_it_and_by_what_became_of_it(path, ledger, tmp_path):
    heads = [ledger.head, *(ledger.charge(charge(number), None) for number in (1, 2, 3))]
    assert all(Ledger(path).contains(head) for head in heads)
    other = Ledger.create(tmp_path / "other")
    for number in (1, 2, 3):
        other.charge(charge(number), None)
    assert not any(other.contains(head) for head in heads)
    for rows in (-1, 4, 2**40):
        assert not ledger.contains(Head(rows, heads[-1].sha256))
    assert not ledger.contains(Head(2, heads[-1].sha256))


def test_a_copy_put_back_and_a_cut_end_break_the_anchor(path, ledger):
    ledger.charge(charge(1), None)
    shutil.copy(path, path.with_name("old"))
    anchor = ledger.charge(charge(2), None)
    os.replace(path.with_name("old"), path)
    assert not Ledger(path).contains(anchor)
    with pytest.raises(LedgerError, match="gone or changed"):
        ledger.rows()  # who had it open knows at once
    fork = Ledger(path).charge(charge(3), None)
    assert not Ledger(path).contains(anchor)
    assert Ledger(path).contains(fork)
    tamper(path, "DELETE FROM charges WHERE number = 2")
    assert len(Ledger(path).rows()) == 1  # a chain alone shows no cut
    assert not Ledger(path).contains(fork)
