"""The gentlest cut that meets a cost, on costs that are known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.autoglm.light.plan.families import LEAST_SHARE, OutOfReach, fit_parameters
from fedglm.autoglm.light.pruning.shape import LayerShape, ModelShape

LAYER = LayerShape(intermediate_size=256, num_key_value_heads=2, num_attention_heads=4)
SHAPE = ModelShape(
    hidden=128, head_dim=32, queries_per_group=2, attention_bias=True, vocabulary=256, outputs=0, layers=(LAYER,) * 3
)
OUTSIDE = 256 * 128 + 128
LOW = OUTSIDE + int(LEAST_SHARE * (SHAPE.parameters() - OUTSIDE))


def cost(fixed, bits, allowed, bend=0.0):
    """Bytes above those allowed: linear in the parameters, or bent."""

    def excess(parameters):
        count = SHAPE.parameters() if parameters is None else parameters
        assert LOW <= count <= SHAPE.parameters()
        return (fixed + count * bits / 8 * (1 + bend * count / SHAPE.parameters())) / allowed - 1

    return excess


@given(st.integers(0, 20_000), st.floats(1, 8), st.floats(0.35, 0.99), st.floats(-0.2, 0.2))
def test_the_cut_meets_the_cost_and_hardly_more(fixed, bits, share, bend):
    whole = cost(fixed, bits, 1.0, bend)(None) + 1
    least = cost(fixed, bits, 1.0, bend)(LOW) + 1
    excess = cost(fixed, bits, least + share * (whole - least), bend)
    parameters = fit_parameters(SHAPE, excess)
    assert excess(parameters) <= 0
    assert excess(parameters) > -0.03


def test_nothing_is_cut_where_nothing_must_be():
    assert fit_parameters(SHAPE, cost(0, 4, 10**9)) is None


def test_what_no_cut_reaches_says_by_how_much():
    excess = cost(0, 4, 1000)
    with pytest.raises(OutOfReach) as caught:
        fit_parameters(SHAPE, excess)
    assert caught.value.args == (excess(LOW),)
