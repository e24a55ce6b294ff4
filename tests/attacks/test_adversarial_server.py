"""A server in full control of the messages to one site: any order, any plan in its bounds, any base, resends, kills.

Whatever it asks, an answer that noise was drawn for is charged for, and what a failure or a refusal looks like follows
from no record: two sites whose data differ in one record answer alike, but for what was charged.
"""

import inspect
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from custodies import MECHANISM, announced, custody, run_plan
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from tiny_federation import examples, federated_model, tiny_node

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.training.local import TrainingError
from fedglm.client import local_trainer, plan_checks
from fedglm.client.app import NodeContext, build_client_app
from fedglm.client.gate import OutboundGate
from fedglm.client.state.node_state import NodeState
from fedglm.compression.codec import make_codec
from fedglm.compression.downlink import ModelVersions
from fedglm.privacy.accounting.accountant import compute_epsilon
from fedglm.privacy.custody.transaction import ReleaseTransaction
from fedglm.privacy.dp.mechanism import make_metrics_mechanism
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.log.entries import PURPOSES
from fedglm.privacy.log.signed_log import SignedLog
from fedglm.protocol.messages import MODEL, PLAN, RECORD, UPDATE, TrainRequest

pytestmark = pytest.mark.usefixtures("unsynced")

FEDERATED = federated_model()
LAYOUT, SIZE = FEDERATED.layout.sha256, FEDERATED.layout.size
RATE, EPSILON, DELTA, UNITS = 0.05, 60.0, 1e-3, 20
METRICS = ("loss", "metric", "count")
CODEC = "dense-fp32"  # of a fixed size, so that sizes can be compared


class Killed(BaseException):
    """The process ends here: nothing after it is done, and nothing catches it."""


@dataclass
class Site:
    """One site, whose process can be killed; it counts what an observer of its memory would know."""

    folder: Path
    records: Examples

    def __post_init__(self):
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.start()

    def start(self):
        """A new process: all that it knows lies on the disk."""
        private = {"private": True, "epsilon": EPSILON, "delta": DELTA, "declare_units": UNITS, "metrics": METRICS}
        self.custody = custody(self.folder / "site" / "custody", **private)
        gate = OutboundGate(self.custody, self.folder)
        node = tiny_node(
            self.folder, "site", model=FEDERATED, update={"codec": CODEC}, optimizer="sgd", learning_rate=RATE
        )
        node._trainer._train = self.records
        self.app = build_client_app(lambda _: NodeContext(gate, lambda: node))

    def ask(self, kind, fields):
        """What leaves; None where the process was killed before it answered."""
        message = Message(RecordDict({RECORD: ConfigRecord(fields)}), dst_node_id=1, message_type=kind, group_id="1")
        message.metadata.__dict__["_message_id"] = "m"
        try:
            return self.app(message, Context(1, 1, {}, RecordDict(), {}))
        except Killed:
            self.start()
            return None

    @property
    def rows(self):
        return self.custody.ledger.rows()


def shape(reply):
    """What the server sees of a reply beside the noised numbers: kind, text, and sizes."""
    if reply is None:
        return "killed"
    if reply.has_error():
        return reply.error.code, reply.error.reason
    fields = dict(reply.content.config_records[RECORD])
    return {name: len(value) if isinstance(value, str | bytes) else value for name, value in fields.items()}


def bases(rng):
    """Weights as the server likes them: its own, huge, tiny, so that training overflows or moves nothing."""
    scale = rng.choice([1.0, 1e-4, 1.0, 300.0])
    return (FEDERATED.initial * scale).astype(np.float16).astype(np.float32)


def asks(rng, count):
    """What the server asks for, one after the other: kind, fields, and where the process dies, if it does."""
    plan, versions, known = None, None, []
    for _ in range(count):
        act = rng.choice(["plan"] + ["train"] * 6 + ["evaluate"] * 2 + ["again"] * 4)
        dies = rng.choice([None] * 12 + ["train", "save", "charge", "log"])
        if plan is None or act == "plan":
            rounds = rng.randint(1, 60)
            changes = {
                "run": f"run-{rng.randint(1, 6)}",
                "rounds": rounds,
                "turns": rng.randint(1, rounds),
                "mechanism": replace(MECHANISM, noise_multiplier=rng.choice([1.0, 1.5, 4.0])),
                "model": rng.choice([MODEL_SHA256, "0" * 64]),
            }
            changes["metrics"] = rng.choice([None, make_metrics_mechanism(changes["mechanism"], 8.0)])
            plan = run_plan(LAYOUT, parameters=SIZE, codec=CODEC, **changes)
            yield "query", {PLAN: announced(plan)}, None
            continue
        if act == "again" and known:
            yield (*rng.choice(known), dies)
            continue
        versions = ModelVersions(bases(rng), LAYOUT, make_codec("dense-fp32"), grid="fp16")
        versions.version = rng.choice([0, 1, 1, 2])
        instruction = TrainRequest(
            run=rng.choice([plan.run] * 9 + ["run-9"]),
            round=rng.randint(1, max(2, plan.spec.rounds)),
            nonce="0" * 16,
            layout=LAYOUT,
            version=versions.version,
            acknowledged=rng.randint(0, 3),
            learning_rate=rng.choice([RATE, RATE / 2, 1e-30, 2 * RATE]),
            evaluate=plan.spec.noise.metrics is not None and rng.random() < 0.5,
        )
        kind = "evaluate" if act == "evaluate" else "train"
        known.append((kind, {**instruction.to_fields(), MODEL: versions.snapshot()}))
        yield (*known[-1], dies)


MODEL_SHA256 = ModelVersions(FEDERATED.initial, LAYOUT, make_codec("dense-fp32"), grid="fp16").sha256


@pytest.fixture
def killable(monkeypatch):
    """Lets a test say where the next process dies: `where[0]`, once; and counts the times that noise met data."""
    where, met = [None], [0]

    def dying(name, right):
        def act(*arguments, **options):
            done = right(*arguments, **options) if name == "train" else None
            if name == "train":
                met[0] += 1
            if where[0] == name:
                where[0] = None
                raise Killed
            return done if name == "train" else right(*arguments, **options)

        return act

    monkeypatch.setattr(local_trainer, "train_privately", dying("train", local_trainer.train_privately))
    monkeypatch.setattr(local_trainer, "evaluate_privately", dying("train", local_trainer.evaluate_privately))
    for name, owner, method in (
        ("save", NodeState, "save"),
        ("charge", Ledger, "charge"),
        ("log", SignedLog, "_write_entries"),
    ):
        right = dying(name, getattr(owner, method))
        plain = inspect.isfunction(inspect.getattr_static(owner, method))
        monkeypatch.setattr(owner, method, right if plain else staticmethod(right))
    return where, met


def attack(folder, seed, count, killable):
    """Ask two neighbouring sites the same; returns how many answers with fresh noise left the first."""
    where, met = killable
    whole = examples(20, 3)
    sites = [Site(folder / "with", whole), Site(folder / "without", whole.select(np.arange(1, 20)))]
    fresh, left, measured = 0, set(), set()
    for kind, fields, dies in asks(random.Random(seed), count):  # noqa: S311 - a test's order
        seen = []
        for site in sites:
            before, met[0], where[0] = len(site.rows), 0, dies
            reply = site.ask(kind, fields)
            where[0] = None
            rows = len(site.rows) - before
            if met[0] and reply is not None:
                assert rows, f"noise met data and nothing was charged: {shape(reply)}"
            seen.append((bool(met[0]), rows, shape(reply)))
            if site is sites[0] and reply is not None and not reply.has_error():
                if UPDATE in reply.content[RECORD]:
                    fresh += bool(met[0])
                    left.add(reply.content[RECORD][UPDATE])
                if "metrics" in reply.content:
                    measured.add(tuple(reply.content["metrics"].values()))
        (met_a, rows_a, shape_a), (met_b, rows_b, shape_b) = seen
        assert (met_a, rows_a) == (met_b, rows_b)
        if not met_a:
            resent = isinstance(shape_a, dict) or isinstance(shape_b, dict)
            assert resent or shape_a == shape_b, f"{shape_a} and {shape_b}: a record decides what the server sees"
        if isinstance(shape_a, dict) and isinstance(shape_b, dict):
            assert {**shape_a, "log": 0} == {**shape_b, "log": 0}
    site = sites[0]
    charges = {purpose: [row.charge for row in site.rows if row.charge.purpose == purpose] for purpose in PURPOSES}
    assert max(fresh, len(left)) <= len(charges["update"])
    assert len(measured) <= len(charges["metrics"])
    assert len({charge.release for charge in charges["update"]}) >= len(left)
    events = [row.charge.mechanism.event() for row in site.rows]
    assert compute_epsilon(events, DELTA).epsilon <= EPSILON
    ReleaseTransaction(site.custody.ledger, site.custody.log).verify()
    return fresh


def test_forty_asks(tmp_path, killable):
    """Of this order: fresh answers and resent ones, updates and measures, and deaths at each of the four places."""
    assert attack(tmp_path, 17, 40, killable) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_hundred_asks(seed, tmp_path, killable):
    assert attack(tmp_path, seed, 100, killable) > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 120))
def test_ten_thousand_asks(seed, tmp_path, killable):
    assert attack(tmp_path, seed, 500, killable) > 0


def test_equal_bytes_by_fresh_noise_are_charged_each(tmp_path, killable):
    """A learning rate of nothing makes all updates the same bytes, and still each is a training with fresh noise."""
    _, met = killable
    site = Site(tmp_path, examples(20, 3))
    plan = run_plan(LAYOUT, parameters=SIZE, codec=CODEC, mechanism=MECHANISM, model=MODEL_SHA256)
    site.ask("query", {PLAN: announced(plan)})
    versions = ModelVersions(FEDERATED.initial, LAYOUT, make_codec("dense-fp32"), grid="fp16")
    blobs = set()
    for number in range(1, 6):
        order = TrainRequest(
            run=plan.run, round=number, nonce="0" * 16, layout=LAYOUT, version=0, acknowledged=0, learning_rate=1e-30,
            evaluate=False,
        )  # fmt: skip
        reply = site.ask("train", {**order.to_fields(), MODEL: versions.snapshot()})
        blobs.add(reply.content[RECORD][UPDATE])
    assert (len(blobs), met[0], len(site.rows)) == (1, 5, 5)


@pytest.mark.parametrize("cause", ["overflow", "size"])
def test_a_failure_after_noise_met_data_is_charged_and_says_nothing(cause, tmp_path, monkeypatch):
    """An overflow follows from the sign of the noise; a refusal by size told the exact size of the noised update."""
    site = Site(tmp_path, examples(20, 3))
    if cause == "overflow":
        right = local_trainer.train_privately

        def overflows(*arguments, **options):
            right(*arguments, **options)
            raise TrainingError("a trained weight is not finite")

        monkeypatch.setattr(local_trainer, "train_privately", overflows)
    else:
        monkeypatch.setattr(plan_checks, "MAX_OVERHEAD_BYTES", -4 * SIZE)
    plan = run_plan(LAYOUT, parameters=SIZE, codec=CODEC, mechanism=MECHANISM, model=MODEL_SHA256)
    site.ask("query", {PLAN: announced(plan)})
    versions = ModelVersions(FEDERATED.initial, LAYOUT, make_codec("dense-fp32"), grid="fp16")
    seen = set()
    for number in (1, 1, 2, 3):
        order = TrainRequest(
            run=plan.run, round=number, nonce="0" * 16, layout=LAYOUT, version=0, acknowledged=0, learning_rate=RATE,
            evaluate=False,
        )  # fmt: skip
        reply = site.ask("train", {**order.to_fields(), MODEL: versions.snapshot()})
        assert reply.has_error()
        seen.add((reply.error.code, reply.error.reason))
    assert len(seen) == 1
    assert len(site.rows) == 3  # asked again for a round: the same attempt
