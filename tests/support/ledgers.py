"""Charges of a mechanism, the budgets that hold so many of them, and a hand at the file behind a ledger."""

import hashlib
import sqlite3

from fedglm.privacy.accounting.accountant import compute_epsilon
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.ledger.charges import Budget, Charge

MECHANISM = Mechanism(
    sampling_rate=0.1, steps=20, clipping_norm=1.0, noise_multiplier=1.5, unit="patient_id", records_per_unit=3
)
DELTA = 1e-5


def sha256(value):
    return hashlib.sha256(value if isinstance(value, bytes) else str(value).encode()).hexdigest()


def charge(number=1, **changes):
    fields = {
        "data_set": "notes",
        "commitment": sha256("content"),
        "run": "run-1",
        "round": number,
        "purpose": "update",
        "mechanism": MECHANISM,
        "plan": sha256("plan"),
        "policy": sha256("policy"),
        "release": sha256(f"update {number}"),
    }
    return Charge(**{**fields, **changes})


def epsilon_of(rounds):
    return compute_epsilon([MECHANISM.event()] * rounds, DELTA).epsilon


def budget_for(rounds):
    """A budget that so many rounds stay within, and one more does not."""
    return Budget((epsilon_of(rounds) + epsilon_of(rounds + 1)) / 2, DELTA)


def tamper(path, *statements):
    with sqlite3.connect(path) as database:
        for statement in statements:
            database.execute(statement)
    database.close()
