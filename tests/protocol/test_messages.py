import json
from dataclasses import fields, replace

import pytest
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st

from fedglm.client.flower_records import count_message_bytes
from fedglm.compression.codec import CodecError
from fedglm.inference.device.processor import Processor
from fedglm.inference.validation.use import Latency, Use
from fedglm.inference.validation.validation import Check, DeviceFacts, Validation, sign_validation
from fedglm.privacy.keys.signing import SigningKey
from fedglm.protocol.messages import (
    MAX_VALIDATION,
    JoinReply,
    LightOffer,
    LightReply,
    MessageError,
    ModRequest,
    TrainReply,
    TrainRequest,
)
from fedglm.server.gateway.reply_limits import MAX_METADATA_BYTES

names = st.text(max_size=200).filter(str.isprintable) | st.text("abc-é ü", max_size=200)
versions = st.integers(-1, 2**31 - 1)
numbers = st.integers(1, 2**31 - 1)
MESSAGES = {
    TrainRequest: st.builds(
        TrainRequest,
        run=names,
        round=numbers,
        nonce=names,
        layout=names,
        version=st.integers(0, 2**31 - 1),
        acknowledged=st.integers(0, 2**31 - 1),
        learning_rate=st.floats(0, 1e9),
        evaluate=st.booleans(),
        anchor=st.none() | names,
    ),
    TrainReply: st.builds(
        TrainReply, nonce=names, holds=st.none() | versions, log=st.none() | names, signature=st.none() | names
    ),
    JoinReply: st.builds(
        JoinReply, name=names, run=names, version=versions, layout=names, examples=st.integers(0, 2**40 - 1)
    ),
    LightOffer: st.builds(LightOffer, run=names, base=st.none() | names),
    LightReply: st.builds(
        LightReply,
        version=versions,
        manifest=names,
        fault=st.none() | names,
        unfit=st.none() | st.booleans(),
        validation=st.none() | names,
    ),
    ModRequest: st.builds(ModRequest, run=names, round=numbers, acknowledged=st.integers(0, 2**31 - 1)),
}
INSTRUCTION = TrainRequest(
    run="r",
    round=3,
    nonce="n",
    layout="l",
    version=2,
    acknowledged=1,
    learning_rate=0.1,
    evaluate=False,
    anchor="1:a",
)
REPORT = TrainReply(nonce="n", holds=2, log="1:a", signature="s")
INTRODUCTION = JoinReply(name="a", run="", version=-1, layout="l", examples=0, signature="s")
ORDER = ModRequest(run="r", round=3, acknowledged=2)
OFFER = LightOffer(run="r", base="b")
HELD = LightReply(version=3, manifest="m", fault="f", unfit=True, validation="{}", signature="s")
ALL = [INSTRUCTION, REPORT, INTRODUCTION, ORDER, OFFER, HELD]
FIELDS = [(message, field.name) for message in ALL for field in fields(message)]
OPTIONAL = [
    (REPORT, "holds"),
    (REPORT, "log"),
    (REPORT, "signature"),
    (INTRODUCTION, "signature"),
    (INSTRUCTION, "anchor"),
    (OFFER, "base"),
    (HELD, "fault"),
    (HELD, "unfit"),
    (HELD, "validation"),
    (HELD, "signature"),
]


@pytest.mark.parametrize("kind", MESSAGES)
@given(data=st.data())
def test_a_round_trip_as_json_and_in_a_flower_record(kind, data):
    message = data.draw(MESSAGES[kind])
    assert kind.from_fields(message.to_fields()) == message
    assert kind.from_fields(json.loads(json.dumps(message.to_fields()))) == message
    assert kind.from_fields(ConfigRecord(dict(message.to_fields()))) == message


def refused(message, changed):
    with pytest.raises(MessageError) as caught:
        type(message).from_fields(changed)
    assert type(message).__name__ in str(caught.value)
    assert isinstance(caught.value, CodecError)
    return str(caught.value)


@pytest.mark.parametrize(("message", "name"), OPTIONAL)
def test_an_optional_field_that_says_nothing_is_left_out(message, name):
    silent = replace(message, **{name: None})
    assert silent.to_fields() == {field: value for field, value in message.to_fields().items() if field != name}
    assert type(message).from_fields(silent.to_fields()) == silent


@pytest.mark.parametrize(("message", "name"), [pair for pair in FIELDS if pair not in OPTIONAL])
def test_a_missing_field_is_refused(message, name):
    changed = message.to_fields()
    del changed[name]
    assert name in refused(message, changed)


@pytest.mark.parametrize("message", ALL)
@pytest.mark.parametrize("name", ["extra", "", "x" * 10_000, 7])
def test_a_foreign_field_is_refused_in_a_short_line(message, name):
    assert len(refused(message, message.to_fields() | {name: 1})) < 300


def test_a_message_that_is_made_here_is_held_to_the_same_bounds():
    for change in ({"round": 0}, {"learning_rate": 1}, {"run": "x" * 201}):
        with pytest.raises(ValueError, match=next(iter(change))):
            replace(INSTRUCTION, **change)


def test_a_fault_is_named_by_its_kind():
    for change, text in (
        ({"round": "3"}, "TrainRequest.round: int expected, got str"),
        ({"learning_rate": 1}, "TrainRequest.learning_rate: float expected, got int"),
        ({"run": "a\n"}, "TrainRequest.run: longer than 200 characters, or not printable"),
        ({"version": -2}, "TrainRequest.version: out of range: input should be greater than or equal to -1"),
        ({"extra": 1}, "TrainRequest: missing or unknown fields: extra"),
    ):
        assert refused(INSTRUCTION, INSTRUCTION.to_fields() | change) == text


@pytest.mark.parametrize(("message", "name"), FIELDS)
@pytest.mark.parametrize("wrong", [None, b"x", [1], ["a"], {}, 1j])
def test_a_type_that_no_field_has_is_refused(message, name, wrong):
    assert name in refused(message, message.to_fields() | {name: wrong})


@pytest.mark.parametrize(("message", "name"), FIELDS)
def test_types_are_not_converted(message, name):
    value = message.to_fields()[name]
    for wrong in ("1", 1, 1.0, True):
        if type(wrong) is not type(value):
            assert name in refused(message, message.to_fields() | {name: wrong})


@pytest.mark.parametrize(
    ("message", "name", "wrong"),
    [
        (INSTRUCTION, "round", [0, -1, 2**31, 10**5000]),
        (INSTRUCTION, "version", [-2, 2**31]),
        (INSTRUCTION, "acknowledged", [-1, 2**31]),
        (INSTRUCTION, "learning_rate", [float("nan"), float("inf"), -float("inf"), -1e-9]),
        (REPORT, "holds", [-2, 2**31]),
        (INTRODUCTION, "version", [-2, 2**31]),
        (INTRODUCTION, "examples", [-1, 2**40]),
    ],
)
def test_a_value_out_of_bounds_is_refused(message, name, wrong):
    for value in wrong:
        text = refused(message, message.to_fields() | {name: value})
        assert name in text
        assert len(text) < 300


@pytest.mark.parametrize(
    ("message", "name"), [pair for pair in FIELDS if isinstance(pair[0].to_fields()[pair[1]], str)]
)
def test_a_long_text_is_refused(message, name):
    refused(message, message.to_fields() | {name: "x" * (MAX_VALIDATION + 1 if name == "validation" else 201)})


def longest_validation(letter):
    """The longest that a node of this version makes, in which all texts are of one letter."""
    latency = Latency(p50_ms=0.00012345678901234567, p99_ms=0.00012345678901234567, n=2**63 - 1)
    features = dict.fromkeys(("avx2", "avx512", "vnni", "amx", "neon", "dotprod", "i8mm"), False)
    return Validation(
        made=40 * letter,
        fedglm=40 * letter,
        manifest_sha256=43 * "a",
        signer=64 * "a",
        verified=False,
        device=DeviceFacts(
            system=200 * letter,
            runtime=40 * letter,
            processor=Processor(
                name=200 * letter, architecture=40 * letter, features=features, cores=1 / 3, cache_bytes=2**63
            ),
            memory_bytes=2**63,
            threads=1024,
        ),
        checks=(Check(name=40 * letter, passed=False, detail=400 * letter),) * 6,
        use=Use(
            import_ms=1 / 3, load_ms=1 / 3, prompt_tokens=64, prefill=latency, decode=latency, peak_bytes=2**62,
            watts=1 / 3,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("letter", ["x", '"', "\\", "\U0001f600"])
def test_the_longest_validation_fits_into_a_reply_and_that_into_what_the_server_takes(letter):
    signed = sign_validation(longest_validation(letter), SigningKey.generate()).decode()
    reply = LightReply(version=2**31 - 1, manifest="f" * 64, fault="f" * 200, validation=signed, signature="s" * 88)
    assert count_message_bytes(reply) <= MAX_METADATA_BYTES
    # Whatever fits into the field does: four bytes a character at the most.
    whole = replace(reply, validation=MAX_VALIDATION * "\U0001f600", fault=200 * "\U0001f600")
    assert count_message_bytes(whole) <= MAX_METADATA_BYTES
