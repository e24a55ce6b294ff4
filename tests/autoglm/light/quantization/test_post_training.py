"""Error compensation makes up for rounding in the outputs; calibration measures the inputs of real tokens alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_tasks import text_task

from fedglm.autoglm.data.records import Records
from fedglm.autoglm.errors import DataError, ModelError
from fedglm.autoglm.light.quantization.calibration import measure_moments, shift_tokens
from fedglm.autoglm.light.quantization.error_compensation import compensate, fit_codes
from fedglm.autoglm.light.quantization.fitting import fit_grid
from fedglm.autoglm.light.quantization.matrices import list_matrices
from fedglm.autoglm.light.quantization.post_training import quantize
from fedglm.autoglm.light.quantization.scheme import Scheme
from fedglm.autoglm.models.build import build_model
from fedglm.autoglm.settings import ModelSettings

torch.set_num_threads(1)


def correlated(columns: int, seed: int = 0) -> np.ndarray:
    """Inputs of a few strong directions, as hidden states have."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(512, columns)) + 3 * rng.normal(size=(512, 4)) @ rng.normal(size=(4, columns))
    return inputs.T @ inputs / len(inputs)


def output_error(weight: np.ndarray, values: np.ndarray, moments: np.ndarray) -> float:
    off = values.astype(np.float64) - weight
    return float(np.einsum("rc,cd,rd->", off, moments, off))


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(codes="int4", block=32),
        Scheme(codes="int3", block="row", symmetric=False),
        Scheme(codes="ternary", block="row"),
    ],
    ids=str,
)
def test_compensation_leaves_less_error_in_the_outputs_than_rounding(scheme: Scheme) -> None:
    weight = np.random.default_rng(1).normal(size=(24, 96)).astype(np.float32)
    moments = correlated(96)
    errors = {
        method: output_error(weight, quantize(weight, scheme, method=method, moments=moments).dequantize(), moments)
        for method in ("mse", "compensated")
    }
    assert errors["compensated"] < errors["mse"] / 1.5


def test_weighing_by_the_inputs_leaves_less_error_where_they_are_strong() -> None:
    weight = np.random.default_rng(1).normal(size=(24, 64)).astype(np.float32)
    moments = np.diag(np.geomspace(1e-3, 1e3, 64))
    scheme = Scheme(codes="int2", block="row")
    errors = {
        method: output_error(weight, quantize(weight, scheme, method=method, moments=moments).dequantize(), moments)
        for method in ("mse", "weighted")
    }
    assert errors["weighted"] < errors["mse"]


@pytest.mark.parametrize("block", ["row", "tensor"])
def test_fitting_scale_and_codes_in_turn_leaves_less_error_than_codes_alone(block: str) -> None:
    weight = torch.from_numpy(np.random.default_rng(1).normal(size=(24, 96)).astype(np.float32))
    moments, scheme = torch.from_numpy(correlated(96)), Scheme(codes="ternary", block=block)
    start = fit_grid(weight, scheme, importance=moments.diagonal().float())
    alone = start.decode(compensate(weight, start, moments))
    grid, codes = fit_codes(weight, start, moments)
    errors = [output_error(weight.numpy(), one.numpy(), moments.numpy()) for one in (alone, grid.decode(codes))]
    assert errors[1] < errors[0]
    assert len(grid.scales.unique()) == (1 if block == "tensor" else 24)
    # The scale is that of least squares: a little more or less is worse, but for the rounding to float16.
    for factor in (0.99, 1.01):
        other = output_error(weight.numpy(), grid.decode(codes).numpy() * np.float32(factor), moments.numpy())
        assert other > errors[1]


def test_with_uncorrelated_inputs_compensation_is_rounding() -> None:
    weight = np.random.default_rng(1).normal(size=(8, 100)).astype(np.float32)
    scheme = Scheme(codes="int4", block=32)
    plain = quantize(weight, scheme, method="weighted", moments=np.eye(100))
    compensated = quantize(weight, scheme, method="compensated", moments=np.eye(100))
    assert np.array_equal(plain.codes, compensated.codes)


def test_a_method_that_needs_moments_says_so() -> None:
    weight = np.ones((4, 8), np.float32)
    with pytest.raises(ModelError, match="needs the inputs' moments: calibrate"):
        quantize(weight, Scheme(), method="compensated")
    with pytest.raises(ModelError, match="four at a time: take method mse"):
        quantize(weight, Scheme(codes="sparse-ternary", block=8), method="compensated", moments=np.eye(8))


def test_moments_are_those_of_real_tokens_and_of_the_tied_output_layer() -> None:
    task = text_task()
    model = build_model(ModelSettings(preset="glm-0.1m"), task, seed=0)
    both, _ = task.examples(Records(texts=["abcdef", "the quick brown fox"], units=["a", "b"]))
    parts = [measure_moments(model, both.select([i])) for i in range(2)]
    pooled = measure_moments(model, both, batch_size=2)  # padded to the longer: padding must not count
    assert pooled.keys() == list_matrices(model).keys()
    assert "model.embed_tokens.weight" in pooled
    lengths = both.lengths.double()
    for name, moments in pooled.items():
        wanted = (parts[0][name] * lengths[0] + parts[1][name] * lengths[1]) / lengths.sum()
        assert torch.allclose(moments, wanted, rtol=1e-4, atol=1e-7), name
    assert model.training
    with pytest.raises(DataError, match="at least one public text"):
        measure_moments(model, both.select([]))


def test_shifted_tokens_differ_in_the_share_that_was_asked_for() -> None:
    examples, _ = text_task().examples(Records(texts=["the quick brown fox " * 200], units=["a"]))
    shifted = shift_tokens(examples, 0.5, vocab_size=256, seed=3)
    share = float((shifted.input_ids != examples.input_ids).double().mean())
    # 255/256 of the replaced ones differ; n tokens, so that five standard deviations are 5 sqrt(0.25 / n)
    assert abs(share - 0.5 * 255 / 256) < 5 * (0.25 / examples.input_ids.numel()) ** 0.5
    again = shift_tokens(examples, 0.5, vocab_size=256, seed=3)
    assert torch.equal(again.input_ids, shifted.input_ids)
    assert torch.equal(shift_tokens(examples, 0.0, vocab_size=256, seed=3).input_ids, examples.input_ids)
