import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.inference.batching.costs import CostTable
from fedglm.inference.errors import InferenceError

TIMES = {(1, 1): 1.0, (4, 1): 2.0, (8, 1): 7.0, (1, 64): 8.0, (4, 64): 30.0, (8, 64): 61.0}


def test_what_was_measured_is_what_is_read():
    table = CostTable(TIMES)
    assert {pair: table.milliseconds(*pair) for pair in TIMES} == TIMES == table.measured


@given(st.integers(1, 8), st.integers(1, 64))
def test_between_measurements_the_time_is_between_theirs(batch, tokens):
    low, high = (1, 4) if batch <= 4 else (4, 8)
    corners = [TIMES[b, t] for b in (low, high) for t in (1, 64)]
    assert min(corners) <= CostTable(TIMES).milliseconds(batch, tokens) <= max(corners)


def test_interpolation_is_linear():
    assert CostTable(TIMES).milliseconds(6, 1) == pytest.approx(4.5)
    assert CostTable({(1, 1): 1.0, (1, 3): 2.0}).milliseconds(1, 2) == pytest.approx(1.5)


@given(st.integers(9, 1000), st.integers(65, 5000))
def test_beyond_what_was_measured_nothing_is_gained(batch, tokens):
    table = CostTable(TIMES)
    assert table.milliseconds(batch, 1) / batch == pytest.approx(7.0 / 8)
    assert table.milliseconds(1, tokens) / tokens == pytest.approx(8.0 / 64)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({}, "begins with batch 1"),
        ({(2, 1): 1.0}, "begins with batch 1"),
        ({(1, 0): 1.0}, "at least one token"),
        ({(1, 1): 1.0, (2, 4): 1.0}, r"\(1, 4\) is missing"),
        ({(1, 1): 0.0}, "0.0 ms"),
        ({(1, 1): float("nan")}, "nan ms"),
    ],
)
def test_a_table_with_holes_or_without_a_beginning_is_refused(times, message):
    with pytest.raises(InferenceError, match=message):
        CostTable(times)
