"""One of four enrolled sites says whatever it likes: its own answers count for nothing, and the others' run goes on."""

import base64
import random
from dataclasses import replace

import numpy as np
import pytest
from fake_grid import FEDERATED, SIZE, answering, federate, instruction_of
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from tiny_federation import tiny_node

from fedglm.compression.codec import make_codec
from fedglm.compression.settings import DownlinkSettings
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.policy.run_plan import SignedPlan
from fedglm.protocol.messages import PLAN, RECORD, UPDATE, JoinReply, TrainReply
from fedglm.protocol.signatures import SIGNATURE, sign_join_reply, sign_train_reply

pytestmark = pytest.mark.usefixtures("unsynced")

DENSE = DownlinkSettings(codec="dense-fp32")
KEYS = {name: SigningKey.generate() for name in "abcd"}
SITES = {name: key.public for name, key in KEYS.items()}
TEXTS = ["", "\x1b[2J\x1b]0;pwned\x07", "a\nround 1: 9 of 9 sites", "[link=http://evil/]x[/link]", "‮gpj", "x" * 10**5]
CODES = [value for value in vars(ErrorCode).values() if isinstance(value, int)]
ROUNDS = 2
FAST = {"rounds": ROUNDS, "round_timeout_s": 60.0, "grace_s": 1.0, "join_timeout_s": 2.0, "resends": 1, "quorum": 0.5}


STRANGER = SigningKey.generate()


def own(name):
    """The key that a hostile site signs with in a name: it has its own, and no other site's."""
    return KEYS["d"] if name == "d" else STRANGER


def error(rng, message):
    return Message(Error(code=rng.choice(CODES), reason=rng.choice(TEXTS)), reply_to=message)


def words(message, fields, metrics=None):
    content = RecordDict({RECORD: ConfigRecord(fields)})
    if metrics is not None:
        content["metrics"] = MetricRecord(metrics)
    return Message(content, reply_to=message)


def introduction(rng, message):
    """The hostile site's introduction: mostly one that lets it take part."""
    plan = SignedPlan.from_bytes(message.content.config_records[RECORD][PLAN])
    fields = {"name": "d", "run": "", "version": -1, "layout": FEDERATED.layout.sha256, "examples": 20}
    fields |= rng.choice(
        [{}] * 6
        + [{"name": "a"}, {"name": "d\x1b[31m"}, {"layout": "0" * 64}, {"examples": 0}, {"examples": 2**40 - 1}]
        + [{"version": 2**31 - 1, "run": "x" * 200}, {"more": 1}, {"name": 7}]
    )
    key = own(rng.choice("ddddda")) if rng.random() < 0.9 else None
    signed = key and all(type(fields[name]) is type(value) for name, value in (("name", ""), ("examples", 0)))
    if signed and "more" not in fields:
        fields[SIGNATURE] = sign_join_reply(key, JoinReply(**fields).to_fields(), plan.plan.sha256)
    return words(message, fields)


def vectors(rng):
    vector = np.random.default_rng(rng.randrange(2**32)).normal(0, 0.01, SIZE).astype(np.float32)
    kind = rng.choice(["plain", "one", "huge", "tiny", "reversed"])
    if kind == "one":
        vector[:] = 0
        vector[rng.randrange(SIZE)] = rng.choice([9999.0, -9999.0, 60000.0])
    return vector * {"huge": 1e4, "tiny": 1e-30, "reversed": -1e3}.get(kind, 1.0)


def blobs(rng):
    good = make_codec("topk-fp16", density=0.5).encode(vectors(rng))
    cut = rng.randrange(len(good))
    return rng.choice(
        [good] * 4
        + [b"", good[:cut], good + b"\0", good[:cut] + bytes([good[cut] ^ 1]) + good[cut + 1 :], bytes(10**5)]
        + [make_codec("dense-fp32").encode(vectors(rng)), make_codec("topk-fp16").encode(np.ones(SIZE + 1, np.float32))]
    )


def signed_update(message, blob):
    order = instruction_of(dict(message.content.config_records[RECORD]))
    report = TrainReply(nonce=order.nonce)
    signature = sign_train_reply(KEYS["d"], report.to_fields(), order.run, order.round, blob, {})
    return words(message, {**replace(report, signature=signature).to_fields(), UPDATE: blob})


def introduction_of(name, message):
    """What an honest site says of itself."""
    plan = SignedPlan.from_bytes(message.content.config_records[RECORD][PLAN])
    told = JoinReply(name=name, run="", version=-1, layout=FEDERATED.layout.sha256, examples=0).to_fields()
    return words(message, {**told, SIGNATURE: sign_join_reply(KEYS[name], told, plan.plan.sha256)})


def update(rng, message):
    """The hostile site's answer to an instruction: signed by itself or not, of whatever form."""
    order = instruction_of(dict(message.content.config_records[RECORD]))
    if rng.random() < 0.4:  # of a good form, whatever its values are
        return signed_update(message, make_codec("topk-fp16", density=0.5).encode(vectors(rng)))
    report = TrainReply(
        nonce=rng.choice([order.nonce] * 6 + ["0" * 16, "\x1b"]),
        holds=rng.choice([None] * 6 + [-1, 0, 2**30]),
        log=rng.choice([None] * 4 + ["1:" + "0" * 32, "999999999:" + "f" * 32, "\n", "7"]),
    )
    blob = blobs(rng)
    metrics = rng.choice(
        [None, {"loss": 1e29, "metric": -1e29, "count": 2**62}, {"loss": 0.5, "metric": 0.5, "count": 3}, {"x": 1}]
    )
    key = own(rng.choice("ddddddab"))
    signature = sign_train_reply(key, report.to_fields(), order.run, order.round, blob, {})
    signature = rng.choice([signature] * 8 + [None, "A", "AAAA", base64.b64encode(bytes(64)).decode()])
    fields = {**replace(report, signature=signature).to_fields(), UPDATE: blob}
    if rng.random() < 0.1:
        fields.pop(rng.choice(sorted(fields)))
    if rng.random() < 0.1:
        fields[rng.choice(["more", "nonce"])] = rng.choice([1, "x", b"y"])
    return words(message, fields, metrics)


def seal(rng, message):
    fields = {
        "log": "0" * 64,
        "size": 3,
        "root": "1" * 64,
        "made": "2027-01-01T00:00:00+00:00",
        "key": KEYS["d"].public.hex,
    }
    fields |= {"signature": "2" * 128, "countersignature": "3" * 128}
    fields[rng.choice(sorted(fields))] = rng.choice(["x", "\n", -1, 2**62, "0" * 64])
    return words(message, fields)


def hostile(seed):
    """A site that behaves in one way until it changes its mind."""
    rng = random.Random(seed)  # noqa: S311 - a test's order

    def act(message):
        if rng.random() < 0.04 and message.metadata.message_type in ("query", "train"):
            return None
        if rng.random() < 0.08:
            return error(rng, message)
        if rng.random() < 0.04:
            return Message(RecordDict(), reply_to=message)
        kind = message.metadata.message_type
        return {"query": introduction, "train": update}.get(kind, seal)(rng, message)

    return act


def run(folder, site, **changes):
    honest = {
        10 - i: answering(tiny_node(folder, name, data_seed=i, rows=20), key=KEYS[name]) for i, name in enumerate("abc")
    }
    nodes = honest if site is None else honest | {5: site}
    log = folder / "audit" / "log.sqlite"
    log.parent.mkdir(parents=True)
    coordinator, _, watcher = federate(folder, nodes, sites=SITES, log=log, **(FAST | changes))
    return coordinator, watcher


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The model of the three others, with the fourth site away."""
    return run(tmp_path_factory.mktemp("alone"), None)[0].model_sha256


def attack(folder, seed, alone):
    weighting = random.Random(-seed).choice(["uniform", "uniform", "declared"])  # noqa: S311
    coordinator, watcher = run(folder, hostile(seed), weighting=weighting)
    assert [row["round"] for row in coordinator.rows] == list(range(1, ROUNDS + 1))
    taken = {(event[1], event[2]) for event in watcher.events if event[0] == "reply" and event[3] is None}
    assert {(number, name) for number in range(1, ROUNDS + 1) for name in "abc"} <= taken
    if weighting == "uniform" and not any(name == "d" for _, name in taken):
        assert coordinator.model_sha256 == alone
    for event in watcher.events:
        assert all(text.isprintable() for text in event[1:] if isinstance(text, str)), event
    assert np.isfinite(coordinator.vector).all()
    return any(name == "d" for _, name in taken)


QUICK = range(5, 8)


def test_hostile_behaviours(tmp_path, alone):
    accepted = [attack(tmp_path / str(seed), seed, alone) for seed in QUICK]
    assert 0 < sum(accepted) < len(QUICK)  # some say what an honest site could say, too


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("start", range(1000, 2000, 100))
def test_a_thousand_hostile_behaviours(tmp_path, alone, start):
    for seed in range(start, start + 100):
        attack(tmp_path / str(seed), seed, alone)


def test_a_site_that_says_nothing_delays_a_round_by_its_grace(tmp_path):
    """And not by all the time that a slow site may take."""

    def act(message):
        return introduction_of("d", message) if message.metadata.message_type == "query" else None

    coordinator, _ = run(tmp_path, act, round_timeout_s=3600.0, grace_s=0.5)
    for row in coordinator.rows:
        assert 0.5 <= row["wall_s"] < 60
        assert row["rejections"]["d"].startswith("no reply within ")


def test_a_site_that_never_has_the_model_is_not_sent_it_for_ever(tmp_path):
    """It says that it holds another version each time, which is answered with what it lacks."""
    asked = []

    def act(message):
        if message.metadata.message_type == "query":
            return introduction_of("d", message)
        order = instruction_of(dict(message.content.config_records[RECORD]))
        asked.append(order.round)
        report = TrainReply(nonce=order.nonce, holds=len(asked) % 2)
        signature = sign_train_reply(KEYS["d"], report.to_fields(), order.run, order.round, b"", {})
        return words(message, replace(report, signature=signature).to_fields())

    coordinator, _ = run(tmp_path, act, rounds=4)
    assert [row["nodes_accepted"] for row in coordinator.rows] == [3] * 4
    assert max(asked.count(number) for number in range(1, 5)) <= 1 + FAST["resends"] + 2


def test_a_step_beyond_all_weights_is_dropped_and_the_run_goes_on(tmp_path):
    """All that a limit on norms lets through, on one coordinate, until the model would leave its range."""
    far = np.zeros(SIZE, np.float32)
    far[0] = 60000.0

    def act(message):
        kind = message.metadata.message_type
        if kind == "query":
            return introduction_of("d", message)
        if kind != "train":
            return Message(Error(code=1, reason="no"), reply_to=message)
        return signed_update(message, make_codec("topk-fp16").encode(far))

    coordinator, _ = run(tmp_path, act, rounds=8, norm_limit=1e9, server_optimizer="plain", downlink=DENSE)
    assert len(coordinator.rows) == 8
    assert np.isfinite(coordinator.vector).all()


def test_two_nodes_that_take_one_place_in_turns_end_no_run(tmp_path):
    """A second node answers with the first one's signed words while its update is out."""

    def act(message):
        reply = introduction(random.Random(0), message) if message.metadata.message_type == "query" else None  # noqa: S311
        return reply or update(random.Random(1), message)  # noqa: S311

    def thief(message):
        return act(message) if message.metadata.message_type == "query" else None

    honest = {
        10 - i: answering(tiny_node(tmp_path, name, data_seed=i, rows=20), key=KEYS[name])
        for i, name in enumerate("abc")
    }
    coordinator, _, _ = federate(tmp_path, honest | {5: act, 6: thief, 4: thief}, sites=SITES, **FAST)
    assert len(coordinator.rows) == ROUNDS
