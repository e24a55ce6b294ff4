"""Golden answers come back from their text, whose length follows from theirs; and no other text is taken for one."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedglm.core.canonical_json import canonical_json
from fedglm.inference.errors import InferenceError
from fedglm.inference.release.golden import GoldenAnswer, choose_outputs, pack_golden, unpack_golden

LOGITS = arrays.arrays(np.float32, st.integers(1, 9), elements=st.floats(-(2.0**100), 2.0**100, width=32))


@st.composite
def answers(draw, vocab_size):
    ids = st.integers(0, vocab_size - 1)
    return GoldenAnswer.of(draw(st.lists(ids, min_size=1, max_size=9)), draw(st.lists(ids, max_size=9)), draw(LOGITS))


@given(data=st.data(), vocab_size=st.sampled_from([2, 256, 257, 65_536, 65_537, 151_552]))
def test_answers_come_back(data, vocab_size):
    made = tuple(data.draw(st.lists(answers(vocab_size), max_size=3)))
    text = pack_golden(made, vocab_size)
    assert unpack_golden(text) == made
    width = 1 if vocab_size <= 256 else 2 if vocab_size <= 65_536 else 3
    size = sum(4 + width * (len(one.prompt) + len(one.tokens)) + 2 * len(one.units) for one in made) + bool(made)
    assert len(text) == -(-5 * size // 4)
    assert json.loads(canonical_json(text)) == text
    assert len(canonical_json(text)) == len(text) + 2, "it stands in JSON as it is"


@given(LOGITS)
def test_a_logit_is_rounded_by_half_a_unit_which_is_small(logits):
    made = GoldenAnswer.of([1], [], logits)
    greatest = np.abs(logits.astype(np.float64)).max()
    assert np.abs(made.logits - logits).max() <= made.unit / 2
    assert made.unit <= max(greatest * 2.0**-14 * (1 + 2.0**-13), 2.0**-128) or greatest == 0


def test_outputs_are_spread_evenly():
    assert choose_outputs(100, 4).tolist() == [0, 25, 50, 75]
    assert choose_outputs(3, 3).tolist() == [0, 1, 2]


@given(st.one_of(st.text(max_size=40), st.binary(max_size=40).map(lambda raw: pack_like(b"\x01" + raw))))
def test_any_text_is_answers_or_an_error(text):
    try:
        made = unpack_golden(text)
    except InferenceError:
        return
    assert all(one.prompt and one.units for one in made)


def pack_like(raw):
    import base64

    return base64.b85encode(raw).decode()


def test_cut_off_answers_are_refused():
    text = pack_golden([GoldenAnswer.of([1, 2], [3], np.ones(4, np.float32))], 256)
    for end in range(1, len(text)):
        with pytest.raises(InferenceError, match="damaged"):
            unpack_golden(text[:end])
