"""A node that is killed, retries, restarts and is put back from backups never spends more than its ledger says.

A schedule is a random run of such events on a small node with a real ledger and real files. The server keeps every
message that ever left: each different one is fresh noise on the same data, whatever the node believes. In the end each
of them must stand in the ledger, and all together must stay within the budget. Nodes with one thing wrong show that the
test would notice.
"""

# ruff: noqa: S311 - schedules are repeatable
# ruff: noqa: ARG002 - wrong nodes ignore what they are told

import hashlib
import random
import shutil
from functools import cache

import pytest

from fedglm.core.files import write_atomically
from fedglm.privacy.accounting.accountant import compute_epsilon
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.errors import LedgerError, PrivacyError, Refusal
from fedglm.privacy.ledger.charges import Budget, Charge
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.log.chained_file import Head

MECHANISM = Mechanism(
    sampling_rate=0.1, steps=20, clipping_norm=1.0, noise_multiplier=1.5, unit="record", records_per_unit=1
)
BUDGET = Budget(3.3, 1e-5)


@cache
def most():
    """Rounds that the budget covers."""
    return max(
        n for n in range(1, 9) if compute_epsilon([MECHANISM.event()] * n, BUDGET.delta).epsilon <= BUDGET.epsilon
    )


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Killed(BaseException):
    """The process is gone; only files remain."""


class Server:
    """Keeps all that it ever saw, and the anchor that came with the last message."""

    def __init__(self):
        self.messages = set()
        self.anchor = None

    def receive(self, message, anchor):
        self.messages.add(message)
        if self.anchor is None or anchor.rows >= self.anchor.rows:
            self.anchor = anchor


def charge_for(message, run="run-1", number=1):
    """The charge for an attempt that made a message; each is of fresh noise, so that the message tells them apart."""
    return Charge(
        data_set="notes",
        commitment=sha256(b"content"),
        run=run,
        round=number,
        purpose="update",
        mechanism=MECHANISM,
        plan=sha256(b"plan"),
        policy=sha256(b"policy"),
        release=sha256(message),
        id=sha256(message)[:32],
    )


class Node:
    """The order that the real node keeps: train, store, charge, send."""

    def __init__(self, folder, dice):
        self.folder = folder
        self.dice = dice
        self.ledger = Ledger(folder / "ledger")

    @classmethod
    def install(cls, folder):
        (folder / "model").mkdir(parents=True)
        Ledger.create(folder / "ledger")

    def answer(self, run, number, server, dies_at):
        """One instruction of the server; dies before the step `dies_at`."""
        if not self.trusts(server.anchor):
            return
        message = self.stored(run, number)
        if message is None:
            message = self.dice.randbytes(16)  # training with fresh noise
            self.die(dies_at, "store")
            self.store(run, number, message)
        self.die(dies_at, "charge")
        self.charge_and_send(run, number, message, server, dies_at)

    def charge_and_send(self, run, number, message, server, dies_at):
        if not self.ledger.has_charged(charge_for(message)):
            self.charge(run, number, message)
        self.die(dies_at, "send")
        server.receive(message, self.ledger.head)
        self.die(dies_at, "forget")

    def trusts(self, anchor):
        return anchor is None or self.ledger.contains(anchor)

    def charge(self, run, number, message):
        self.ledger.charge(charge_for(message, run, number), BUDGET)

    def stored(self, run, number):
        path = self.folder / "model" / f"{run}-{number}"
        return path.read_bytes() if path.exists() else None

    def store(self, run, number, message):
        write_atomically(self.folder / "model" / f"{run}-{number}", message)

    @staticmethod
    def die(dies_at, step):
        if dies_at == step:
            raise Killed


# One thing wrong in each.


class ChargesAfterSending(Node):
    def charge_and_send(self, run, number, message, server, dies_at):
        server.receive(message, self.ledger.head)
        self.die(dies_at, "send")
        if not self.ledger.has_charged(charge_for(message)):
            self.charge(run, number, message)


class ResetsTheLedger(Node):
    def __init__(self, folder, dice):
        (folder / "ledger").unlink()
        Ledger.create(folder / "ledger")
        super().__init__(folder, dice)

    def trusts(self, anchor):
        return True


class KeepsALedgerARun(Node):
    def charge(self, run, number, message):
        path = self.folder / f"ledger-{run}"
        self.ledger = Ledger(path) if path.exists() else Ledger.create(path)
        super().charge(run, number, message)

    def trusts(self, anchor):
        return True


class IgnoresTheAnchor(Node):
    def trusts(self, anchor):
        return True


class TakesARoundForCharged(Node):
    """Retries with fresh noise, and does not charge a round twice."""

    def stored(self, run, number):
        return None

    def charge(self, run, number, message):
        if all((row.charge.run, row.charge.round) != (run, number) for row in self.ledger.rows()):
            super().charge(run, number, message)


class ChargesWithoutABudget(Node):
    def charge_and_send(self, run, number, message, server, dies_at):
        try:
            super().charge_and_send(run, number, message, server, dies_at)
        except Refusal:
            server.receive(message, self.ledger.head)


def play(kind, folder, dice):
    """One schedule; returns what is wrong in the end: '' is nothing."""
    server = Server()
    kind.install(folder)
    node = kind(folder, dice)
    refused = 0
    for _ in range(dice.randint(5, 25)):
        event = dice.choice(["answer"] * 6 + ["restart", "back up", "put back the model", "put back all"])
        if event == "answer":
            dies_at = dice.choice([None, None, "store", "charge", "send", "forget"])
            try:
                # A server repeats instructions, in whatever order it likes.
                node.answer(dice.choice(["run-1", "run-2"]), dice.randint(1, 4), server, dies_at)
            except Refusal:
                refused += 1
            except LedgerError:
                raise
            except PrivacyError:
                return "an attempt is charged for twice"
            except Killed:
                node = kind(folder, dice)
        elif event == "restart":
            node = kind(folder, dice)
        elif event == "back up":
            shutil.rmtree(folder.with_name("backup"), ignore_errors=True)
            shutil.copytree(folder, folder.with_name("backup"))
        elif folder.with_name("backup").exists():
            for path in folder.with_name("backup").iterdir():
                if path.is_dir():
                    shutil.rmtree(folder / path.name)
                    shutil.copytree(path, folder / path.name)
                elif event == "put back all":
                    shutil.copy(path, folder / path.name)
            node = kind(folder, dice)
    # Whoever put back an old ledger cannot go on; the audit looks at the newest one that the server vouches for.
    if len(server.messages) > most():
        return "more was released than the budget allows"
    ledger = Ledger(folder / "ledger")
    if (server.anchor is None or ledger.contains(server.anchor)) and not all(
        ledger.has_charged(charge_for(message)) for message in server.messages
    ):
        return "a release is not in the ledger"
    return ""


def first_wrong(kind, folder, seeds):
    for seed in seeds:
        wrong = play(kind, folder / str(seed) / "node", random.Random(seed))
        shutil.rmtree(folder / str(seed))
        if wrong:
            return wrong
    return ""


def test_the_budget_covers_some_rounds_and_not_all():
    assert 2 <= most() < 8


def test_many_schedules(tmp_path):
    """As many as find each of the nodes below that are wrong."""
    assert first_wrong(Node, tmp_path, range(25)) == ""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_thousand_schedules(tmp_path):
    assert first_wrong(Node, tmp_path, range(1000)) == ""


@pytest.mark.parametrize(
    "kind",
    [
        ChargesAfterSending,
        ResetsTheLedger,
        KeepsALedgerARun,
        IgnoresTheAnchor,
        TakesARoundForCharged,
        ChargesWithoutABudget,
    ],
)
def test_the_schedules_find_a_node_that_is_wrong(kind, tmp_path):
    assert first_wrong(kind, tmp_path, range(25)) != ""


def test_a_node_whose_ledger_was_put_back_releases_nothing_more(tmp_path):
    server, folder = Server(), tmp_path / "node"
    Node.install(folder)
    node = Node(folder, random.Random(1))
    shutil.copy(folder / "ledger", tmp_path / "old")
    node.answer("run", 1, server, None)
    assert len(server.messages) == 1
    assert server.anchor == Head(1, node.ledger.head.sha256)
    shutil.copy(tmp_path / "old", folder / "ledger")
    with pytest.raises(LedgerError, match="gone or changed"):
        node.answer("run", 2, server, None)
    Node(folder, random.Random(2)).answer("run", 2, server, None)
    assert len(server.messages) == 1
