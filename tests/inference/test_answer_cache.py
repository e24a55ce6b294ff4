"""The answer cache: its bound holds after every call, and what was used last stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.inference.answer_cache import AnswerCache
from fedglm.inference.errors import InferenceError

CALLS = st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 12))), max_size=40)


@given(CALLS, st.integers(0, 30))
def test_the_bound_holds_and_the_last_used_stay(calls, bound):
    cache, kept = AnswerCache(bound), []  # (key, size), the last used at the end
    for number, (key, size) in enumerate(calls):
        known = dict(kept)
        if size is None:
            assert (cache.get(key) is not None) == (key in known)
            kept = [pair for pair in kept if pair[0] != key] + ([(key, known[key])] if key in known else [])
        else:
            cache.put(key, number, size)
            kept = [pair for pair in kept if pair[0] != key] + ([(key, size)] if size <= bound else [])
            while sum(size for _, size in kept) > bound:
                kept.pop(0)
            assert cache.get(key) == (number if size <= bound else None)
        assert cache.nbytes == sum(size for _, size in kept) <= bound
        assert len(cache) == len(kept)


def test_a_negative_bound_is_refused():
    with pytest.raises(InferenceError, match="must not be negative, as -1 bytes are"):
        AnswerCache(-1)
