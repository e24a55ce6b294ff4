"""What a data set has spent, whoever asks: by its name, by its content, and by what shares either."""

import math

import pytest
from ledgers import DELTA, charge, epsilon_of, sha256

from fedglm.privacy.ledger.charges import Budget
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.ledger.spending import Spending


@pytest.fixture
def ledger(tmp_path):
    return Ledger.create(tmp_path / "ledger.sqlite")


def test_a_name_counts_what_was_charged_to_its_content_under_other_names(ledger):
    ledger.charge(charge(1, data_set="old", commitment=sha256("one")), None)
    ledger.charge(charge(2, data_set="new", commitment=sha256("one")), None)
    ledger.charge(charge(3, data_set="new", commitment=sha256("two")), None)
    ledger.charge(charge(4, data_set="others", commitment=sha256("three")), None)
    assert [row.number for row in ledger.spending("old").rows] == [1, 2, 3]
    assert ledger.spending("unheard of").rows == ()
    # Only who can commit to the records finds them under a name that no row has.
    assert len(ledger.spending("unheard of", sha256("two")).rows) == 3


def test_all_accounts_agree(ledger):
    ledger.charge(charge(1), None)
    ledger.charge(charge(2), None)
    spending = ledger.spending("notes")
    assert spending.at(DELTA).epsilon == spending.epsilon(DELTA) == epsilon_of(2)
    assert spending.bound_epsilon(DELTA) == pytest.approx(epsilon_of(2), abs=0.02)
    assert spending.stays_within(Budget(epsilon_of(2), DELTA))
    assert not spending.stays_within(Budget(epsilon_of(2), DELTA), spending.events[:1])


def test_without_a_delta_only_nothing_and_everything_can_be_told(ledger):
    assert Spending(()).epsilon(None) == 0.0
    ledger.charge(charge(1), None)
    assert ledger.spending("notes").epsilon(None) is None
    ledger.charge(charge(2, mechanism=None), None)
    spending = ledger.spending("notes")
    figures = (
        spending.epsilon(None),
        spending.epsilon(DELTA),
        spending.at(DELTA).epsilon,
        spending.bound_epsilon(DELTA),
    )
    assert figures == (math.inf,) * 4
    assert not spending.stays_within(Budget(1e6, DELTA))
