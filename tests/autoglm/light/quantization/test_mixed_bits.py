"""Mixed bits: within the budget, best at the budgets where a step ends, and measured on a model that is not changed."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.light.quantization.matrices import list_matrices
from fedglm.autoglm.light.quantization.mixed_bits import Choice, allocate_bits, measure_choices
from fedglm.autoglm.light.quantization.scheme import Scheme

SCHEMES = (Scheme(codes="int2"), Scheme(codes="int4"), Scheme(codes="int8"))


@st.composite
def tables(draw: st.DrawFn) -> dict[str, tuple[Choice, ...]]:
    rises = st.floats(0, 1, allow_nan=False)
    return {
        f"m{number}": tuple(
            Choice(scheme=scheme, bits=bits, loss_rise=draw(rises))
            for scheme, bits in zip(SCHEMES, (2.0, 4.0, 8.0), strict=True)
        )
        for number in range(draw(st.integers(1, 4)))
    }


def total(choices: dict[str, tuple[Choice, ...]], chosen: dict[str, Scheme]) -> tuple[float, float]:
    picked = [next(one for one in choices[name] if one.scheme == scheme) for name, scheme in chosen.items()]
    return sum(one.bits for one in picked), sum(one.loss_rise for one in picked)


@given(tables(), st.floats(0, 1))
def test_the_choice_is_within_the_budget_and_spends_it_on_the_loss(
    choices: dict[str, tuple[Choice, ...]], share: float
) -> None:
    budget = len(choices) * (2 + 6 * share)
    chosen = allocate_bits(choices, budget=budget)
    spent, rise = total(choices, chosen)
    assert chosen.keys() == choices.keys()
    assert spent <= budget
    fewest = sum(options[0].loss_rise for options in choices.values())
    assert rise <= fewest  # bits are spent on what lowers the loss alone


@given(tables(), st.floats(1e-3, 1))
def test_at_the_end_of_a_step_no_combination_of_as_many_bits_is_better(
    choices: dict[str, tuple[Choice, ...]], price: float
) -> None:
    # What minimises rise + price x bits is where the steps that save more than the price end.
    best = {name: min(options, key=lambda one: one.loss_rise + price * one.bits) for name, options in choices.items()}
    budget = sum(one.bits for one in best.values())
    _, rise = total(choices, allocate_bits(choices, budget=budget))
    rivals = product(*choices.values())
    least = min(sum(one.loss_rise for one in picks) for picks in rivals if sum(one.bits for one in picks) <= budget)
    assert rise == pytest.approx(least, abs=1e-9)


def test_more_bits_that_do_not_help_are_not_spent() -> None:
    rises = {"a": (0.5, 0.1, 0.1), "b": (0.0, 0.0, 0.0)}
    choices = {
        name: tuple(Choice(scheme=s, bits=b, loss_rise=r) for s, b, r in zip(SCHEMES, (2, 4, 8), row, strict=True))
        for name, row in rises.items()
    }
    assert allocate_bits(choices, budget=16) == {"a": SCHEMES[1], "b": SCHEMES[0]}
    with pytest.raises(ModelError, match="budget of 3 bits is too small: the least schemes take 4"):
        allocate_bits(choices, budget=3)


def test_each_matrix_is_measured_alone_and_restored() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(32, 8, bias=False), torch.nn.Linear(8, 4, bias=False))
    inputs = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(inputs)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    calls = []

    def measure_loss() -> float:
        changed = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
        calls.append(changed)
        with torch.no_grad():
            return float((model(inputs) - wanted).square().mean())

    choices = measure_choices(list_matrices(model), SCHEMES, measure_loss)
    assert calls == [[False, False]] + [[True, False]] * 3 + [[False, True]] * 3
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    for options in choices.values():
        assert options[0].loss_rise > options[1].loss_rise > options[2].loss_rise > 0
        assert [one.scheme for one in options] == list(SCHEMES)
