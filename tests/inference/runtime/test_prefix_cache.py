import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.key_value_cache import KeyValueCache
from fedglm.inference.runtime.prefix_cache import PrefixCache

BYTES_A_TOKEN = 2 * 3 * 4
TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(lambda ids: np.array(ids, np.int64))


def cache_of(tokens):
    """A cache whose keys and values say which tokens they are of."""
    keys = np.repeat(tokens.astype(np.float32)[None, None, :, None], 3, axis=3)
    return KeyValueCache((keys, -keys))


def shared(one, other):
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@given(texts=st.lists(TEXTS, max_size=8), asked=TEXTS)
def test_the_longest_known_beginning_is_found(texts, asked):
    prefixes = PrefixCache(1 << 20)
    for text in texts:
        prefixes.add(text, cache_of(text))
    expected = max((shared(text, asked[:-1]) for text in texts), default=0)
    found = prefixes.find(asked)
    assert (0 if found is None else found.length) == expected
    if found is not None:
        assert found.arrays[0][0, 0, :, 0].tolist() == asked[:expected].tolist()


@given(texts=st.lists(TEXTS, max_size=12), tokens=st.integers(0, 12))
def test_it_never_holds_more_bytes_than_it_may(texts, tokens):
    prefixes = PrefixCache(tokens * BYTES_A_TOKEN)
    for text in texts:
        prefixes.add(text, cache_of(text))
        assert prefixes.nbytes <= tokens * BYTES_A_TOKEN
        if len(text) <= tokens:
            assert prefixes.find(np.append(text, 0)).length == len(text), "what was just added is there"


def test_what_was_used_longest_ago_leaves_first():
    prefixes = PrefixCache(4 * BYTES_A_TOKEN)
    one, two, three = np.array([0, 0]), np.array([1, 1]), np.array([2, 2])
    prefixes.add(one, cache_of(one))
    prefixes.add(two, cache_of(two))
    prefixes.find(np.array([0, 0, 0]))
    prefixes.add(three, cache_of(three))
    assert prefixes.find(np.array([1, 1, 1])) is None
    assert prefixes.find(np.array([0, 0, 0])).length == 2


def test_a_longer_text_takes_the_place_of_its_beginning():
    prefixes = PrefixCache(1 << 20)
    text = np.array([1, 2, 0, 1])
    for length in range(1, 5):
        prefixes.add(text[:length], cache_of(text[:length]))
    assert (len(prefixes), prefixes.nbytes) == (1, 4 * BYTES_A_TOKEN)


def test_the_beginning_of_a_known_text_takes_no_place_and_keeps_that_text():
    prefixes = PrefixCache(4 * BYTES_A_TOKEN)
    text, other = np.array([1, 2]), np.array([2, 2])
    prefixes.add(text, cache_of(text))
    prefixes.add(other, cache_of(other))
    prefixes.add(text[:1], cache_of(text[:1]))
    assert (len(prefixes), prefixes.nbytes) == (2, 4 * BYTES_A_TOKEN)
    third = np.array([0, 0])
    prefixes.add(third, cache_of(third))
    assert prefixes.find(np.array([1, 2, 0])).length == 2
    assert prefixes.find(np.array([2, 2, 0])) is None


def test_a_beginning_that_is_too_short_to_be_worth_it_is_not_found_or_counted():
    prefixes = PrefixCache(1 << 20)
    text = np.array([1, 2, 0])
    prefixes.add(text, cache_of(text))
    assert prefixes.find(np.array([1, 2, 2, 2]), at_least=3) is None
    assert prefixes.reused == 0
    assert prefixes.find(np.array([1, 2, 0, 2]), at_least=3).length == prefixes.reused == 3


def test_wrong_calls_are_named():
    with pytest.raises(InferenceError, match="-1 bytes"):
        PrefixCache(-1)
    with pytest.raises(InferenceError, match="3 positions"):
        PrefixCache(9).add(np.array([1, 2]), cache_of(np.array([1, 2, 3])))
