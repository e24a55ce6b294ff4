"""Goals as they are typed, and the bytes that they allow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.autoglm.light.plan.goals import Goals, parse_goals
from fedglm.autoglm.light.search.costs import Costs, find_excess


def test_several_targets_hold_together():
    goals = parse_goals(["size=20x, latency=3x", "memory=256MB"], "5%")
    assert goals == Goals(size_ratio=20, latency_ratio=3, max_memory_bytes=256_000_000, tolerance=0.05)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("size=80kB", "max_bytes", 80_000),
        ("size=80KiB", "max_bytes", 81_920),
        ("size=1.5MB", "max_bytes", 1_500_000),
        ("latency=5ms", "max_latency_ms", 5.0),
        ("memory=1GB", "max_memory_bytes", 10**9),
        ("size=2.5x", "size_ratio", 2.5),
    ],
)
def test_units(text, field, value):
    assert getattr(parse_goals([text], "0.1%"), field) == value


@pytest.mark.parametrize(
    ("targets", "tolerance", "says"),
    [
        (["20x"], "5%", "size=20x"),
        (["size=20"], "5%", "size=20x"),
        (["sise=20x"], "5%", "did you mean 'size'"),
        (["memory=3x"], "5%", "no unit of memory"),
        (["size=20x", "size=30x"], "5%", "set twice"),
        (["size=0.5x"], "5%", "greater than or equal to 1"),
        (["size=20x"], "5", "a percentage such as 5%"),
        (["size=20x"], "-5%", "a percentage such as 5%"),
        (["size=20x"], "5000%", "tolerance"),
    ],
)
def test_mistakes_name_the_remedy(targets, tolerance, says):
    with pytest.raises(LightenError, match=says):
        parse_goals(targets, tolerance)


def test_a_goal_limits_something():
    with pytest.raises(ValueError, match="limits size, latency or memory"):
        Goals()


@given(st.floats(1, 1000), st.integers(1, 10**9), st.integers(1, 10**9))
def test_bytes_that_are_allowed_meet_the_ratio(ratio, most, reference):
    allowed = Goals(size_ratio=ratio, max_bytes=most).bytes_allowed(reference)
    assert allowed <= most
    assert allowed * ratio <= reference * (1 + 1e-12)


def test_the_goal_that_is_missed_most_counts():
    goals = Goals(size_ratio=10, latency_ratio=2, max_memory_bytes=100)
    costs = Costs(bytes=90, decode_ms=6.0, memory_bytes=90)
    assert find_excess(goals, costs, reference_bytes=1000, reference_ms=10.0) == pytest.approx(0.2)
    met = Costs(bytes=100, decode_ms=5.0, memory_bytes=100)
    assert find_excess(goals, met, reference_bytes=1000, reference_ms=10.0) == 0
