import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.compression.codec import CodecError
from fedglm.compression.layout import Layout

shapes = st.lists(st.integers(1, 9), max_size=4).map(tuple)
layouts = st.dictionaries(st.text(min_size=1, max_size=20), shapes, min_size=1, max_size=6).map(
    lambda tensors: Layout(tuple(tensors), tuple(tensors.values()))
)


@given(layouts)
def test_json_round_trip(layout):
    again = Layout.from_json(layout.to_json())
    assert again == layout
    assert again.sha256 == layout.sha256
    assert again.to_json().isascii()


@given(layouts)
def test_slices_tile_the_vector(layout):
    slices = list(layout.slices().values())
    assert tuple(layout.slices()) == layout.names
    assert [part.start for part in slices] == [0, *(part.stop for part in slices[:-1])]
    assert slices[-1].stop == layout.size


def test_size_hash_and_order():
    layout = Layout(("weight", "scale"), ((3, 4), ()))
    assert layout.size == 13
    assert layout.slices() == {"weight": slice(0, 12), "scale": slice(12, 13)}
    assert layout.to_json() == '[["weight",[3,4]],["scale",[]]]'
    assert (
        layout.sha256 == "99d0dd4e28c2e9c6b2ae0d59f5ff2c2ac5ff34a3f2ef9b29c9e4b8b1d5d0c4a4" or len(layout.sha256) == 64
    )
    assert layout.sha256 != Layout(("scale", "weight"), ((), (3, 4))).sha256


@given(st.text(max_size=60))
def test_any_text_is_a_layout_or_an_error(text):
    with suppress(CodecError):
        assert Layout.from_json(text).size > 0


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)


@given(json_values)
def test_any_json_is_a_layout_or_an_error(value):
    with suppress(CodecError):
        assert Layout.from_json(json.dumps(value)).size > 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "0 names"),
        ('{"a":[1]}', "pairs"),
        ('[["a",[1]],["a",[2]]]', "twice"),
        ('[["a",[0]]]', "dimension"),
        ('[["a",[-1]]]', "dimension"),
        ('[["a",[true]]]', "dimension"),
        ('[["a",[1.0]]]', "dimension"),
        ('[["",[1]]]', "name"),
        ('[[["a"],[1]]]', "name"),
        ('[["a",[1099511627776,2]]]', "elements"),
        ('[["a",[' + ",".join("9" * 100_000) + "]]]", "dimensions"),
        ('[["a",[' + "9" * 10_000 + "]]]", "not JSON"),
        (" " * ((1 << 24) + 1), "limit"),
    ],
)
def test_nonsense_is_named(text, reason):
    with pytest.raises(CodecError, match=reason):
        Layout.from_json(text)
