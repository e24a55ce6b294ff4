"""Grids: rounding errors follow from the step, scales travel as float16, ternary thresholds are optimal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from random_weights import BLOCKS, INTEGERS, random_weights, schemes

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.light.quantization.fitting import fit_grid
from fedglm.autoglm.light.quantization.post_training import quantize
from fedglm.autoglm.light.quantization.scheme import STEPS, Codes, Scheme, step_up


@given(schemes, st.integers(1, 5), st.sampled_from([4, 20, 32, 44]), st.integers(0, 99))
def test_a_packed_matrix_has_the_values_of_its_grid_bit_for_bit(
    scheme: Scheme, rows: int, columns: int, seed: int
) -> None:
    weight = random_weights(rows, columns, seed)
    grid = fit_grid(weight, scheme)
    codes = grid.encode(weight)
    packed = grid.to_matrix(codes)  # checks ranges and that scales are float16
    assert packed.dequantize().tobytes() == grid.decode(codes).numpy().tobytes()
    assert packed.block == (min(scheme.block, columns) if isinstance(scheme.block, int) else columns)


@given(st.sampled_from(INTEGERS), st.sampled_from(BLOCKS), st.booleans(), st.integers(0, 99))
def test_without_clipping_no_weight_is_off_by_more_than_half_a_step(
    codes: Codes, block: int, symmetric: bool, seed: int
) -> None:
    weight = random_weights(seed=seed)
    grid = fit_grid(weight, Scheme(codes=codes, block=block, symmetric=symmetric), fit="absmax")
    error = (grid.decode(grid.encode(weight)) - weight).abs()
    steps = grid.spread(grid.scales, weight.shape[1])
    # The scale is rounded to float16 (2^-11), at up to 128 steps from zero; a zero point is off by half a step more.
    slack = 0.5 * (1 if symmetric else 2) + 256 * 2.0**-11
    assert bool((error <= steps * slack).all())


@given(st.sampled_from(INTEGERS), st.sampled_from(BLOCKS), st.booleans(), st.integers(0, 99))
def test_scales_of_least_squared_error_are_never_worse_than_the_whole_range(
    codes: Codes, block: int, symmetric: bool, seed: int
) -> None:
    weight, scheme = random_weights(seed=seed), Scheme(codes=codes, block=block, symmetric=symmetric)
    importance = torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(seed))

    def error(fit: str, counted: torch.Tensor | None) -> float:
        grid = fit_grid(weight, scheme, fit=fit, importance=counted)
        off = (grid.decode(grid.encode(weight)) - weight).double().square()
        return float((off * (1 if counted is None else counted)).sum())

    assert error("mse", None) <= error("absmax", None) * (1 + 1e-6)
    assert error("mse", importance) <= error("absmax", importance) * (1 + 1e-6)


@given(st.integers(0, 99), st.integers(2, 9))
def test_the_ternary_threshold_is_the_best_of_all(seed: int, columns: int) -> None:
    weight = random_weights(1, columns, seed)
    grid = fit_grid(weight, Scheme(codes="ternary", block="row"))
    error = float((grid.decode(grid.encode(weight)) - weight).square().sum())
    ranked = weight.abs().flatten().sort(descending=True).values
    rivals = []
    for kept in range(1, columns + 1):
        scale = ranked[:kept].mean()
        rivals.append(float((ranked[:kept] - scale).square().sum() + ranked[kept:].square().sum()))
    assert error <= (min(rivals) + columns * float(grid.scales.square()) * 2.0**-22) * (1 + 1e-5)  # a float16 scale


@pytest.mark.parametrize("zeros", [0.0, 0.31, 0.5, 0.74])
@pytest.mark.parametrize("block", [16, "row", "tensor"])
def test_the_share_of_zeros_is_what_was_asked_for(zeros: float, block: int) -> None:
    weight = random_weights(16, 60)  # 60 is no multiple of 16: padding counts for nothing
    codes = quantize(weight.numpy(), Scheme(codes="ternary", block=block, zeros=zeros)).codes
    assert (codes == 0).sum() == round(zeros * weight.numel())


def test_sparse_ternary_has_one_zero_in_every_four_columns_the_smallest() -> None:
    weight = random_weights(8, 64)
    codes = quantize(weight.numpy(), Scheme(codes="sparse-ternary", block="row")).codes.reshape(8, 16, 4)
    assert ((codes == 0).sum(axis=2) == 1).all()
    smallest = np.abs(weight.numpy()).reshape(8, 16, 4).argmin(axis=2)
    assert (codes.argmin(axis=2) >= 0).all()
    assert (np.take_along_axis(codes, smallest[..., None], axis=2) == 0).all()
    with pytest.raises(ModelError, match="multiple of 4 columns, not 30: choose ternary"):
        quantize(random_weights(2, 30).numpy(), Scheme(codes="sparse-ternary", block="row"))


@given(schemes)
def test_zeros_stay_zeros(scheme: Scheme) -> None:
    assert not quantize(np.zeros((3, 8), np.float32), scheme).dequantize().any()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 3e7])
def test_what_no_float16_scale_can_hold_is_refused(wrong: float) -> None:
    weight = random_weights().numpy()
    weight[2, 3] = wrong
    with pytest.raises(ModelError, match="not finite, or its scale exceeds 65504"):
        quantize(weight, Scheme(codes="int4"))


def test_asymmetric_codes_suit_weights_of_one_sign() -> None:
    weight = random_weights().abs().numpy() + 0.1
    errors = {
        symmetric: float(np.square(quantize(weight, Scheme(symmetric=symmetric)).dequantize() - weight).mean())
        for symmetric in (True, False)
    }
    assert errors[False] < errors[True] / 2  # twice as many codes within the range quarter the error; rounding apart


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"codes": "ternary", "symmetric": False}, "drop symmetric"),
        ({"codes": "int4", "zeros": 0.5}, "drop zeros"),
        ({"block": 0}, "at least 1"),
        ({"codes": "sparse-ternary", "block": 30}, "whole groups of 4"),
        ({"codes": "int5"}, "int8"),
        ({"bits": 4}, "bits"),
    ],
)
def test_a_scheme_that_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Scheme(**fields)  # type: ignore[arg-type]


def test_bits_count_codes_scales_and_zero_points() -> None:
    assert Scheme(codes="int4", block=32).bits_per_weight(128, 128) == 4.5
    assert Scheme(codes="int4", block=32, symmetric=False).bits_per_weight(128, 128) == 4 + 20 / 32
    assert Scheme(codes="ternary", block="row").bits_per_weight(128, 64) == 1.6 + 16 / 64
    assert math.isclose(Scheme(codes="sparse-ternary", block="tensor").bits_per_weight(16, 16), 1.25 + 16 / 256)


def test_steps_up_end_at_int8() -> None:
    scheme: Scheme | None = Scheme(codes="sparse-ternary", block="row")
    seen = []
    while scheme is not None:
        seen.append(scheme.codes)
        scheme = step_up(scheme)
    assert tuple(seen) == STEPS
