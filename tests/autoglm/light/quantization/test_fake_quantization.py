"""Fake quantization: what trains is what is packed, bit for bit; gradients, moving averages, frozen parts, entropy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_weights import random_weights, schemes
from small_tasks import text_task
from torch.nn import functional

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.light.quantization.entropy import measure_entropy, soft_length
from fedglm.autoglm.light.quantization.fake_quantization import FakeQuantized
from fedglm.autoglm.light.quantization.fitting import fit_grid
from fedglm.autoglm.light.quantization.matrices import list_matrices
from fedglm.autoglm.light.quantization.qat import EntropyPenalty, FakeQuantization, attach
from fedglm.autoglm.light.quantization.scheme import Scheme
from fedglm.autoglm.light.quantization.settings import QatSettings
from fedglm.autoglm.models.build import build_model
from fedglm.autoglm.settings import ModelSettings

torch.set_num_threads(1)
TERNARY = Scheme(codes="ternary", block="row", zeros=0.5)


def train(module: torch.nn.Module, weight: torch.nn.Parameter, steps: int = 5, rate: float = 1e-2) -> None:
    """Fit the values to others by Adam."""
    wanted = random_weights(*weight.shape, seed=9)
    optimizer = torch.optim.Adam([weight, *module.parameters()], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.mse_loss(module(weight), wanted).backward()
        optimizer.step()


@given(schemes, st.sampled_from(["learned", "ema"]), st.integers(0, 99))
def test_what_trains_is_what_is_packed_bit_for_bit(scheme: Scheme, scales: str, seed: int) -> None:
    weight = torch.nn.Parameter(random_weights(5, 44, seed))
    fake = FakeQuantized(weight, scheme, scales=scales, decay=0.5)
    train(fake, weight)
    fake.eval()  # in training mode a forward pass would first move the average
    packed = fake.export(weight)
    assert packed.dequantize().tobytes() == fake(weight).detach().numpy().tobytes()
    assert np.isfinite(packed.dequantize()).all()


@pytest.mark.parametrize("codes", ["int4", "int2"])
def test_gradients_pass_within_the_range_and_end_beyond_it(codes: str) -> None:
    scheme = Scheme(codes=codes, block="row")
    weight = random_weights(4, 32)
    fake = FakeQuantized(weight, scheme, grid=fit_grid(weight, scheme, fit="mse"))
    weight[1] *= 3  # most of this row is now beyond the codes
    weight.requires_grad_()
    fake(weight).backward(torch.full_like(weight, 2.0))
    places = fake._grid().positions(weight)
    inside = (places >= scheme.low - 0.5) & (places <= scheme.high + 0.5)
    assert 0 < int(inside[1].sum()) < 32
    assert weight.grad is not None
    assert torch.equal(weight.grad, 2.0 * inside)


@pytest.mark.parametrize("scheme", [Scheme(codes="int2", block=8), TERNARY], ids=str)
def test_the_gradient_of_a_scale_is_its_slope_where_no_code_changes(scheme: Scheme) -> None:
    # Beyond the range a value is code times scale, so that the slope is exact; within it LSQ's has the rounding error.
    weight = random_weights(3, 16) * (100 if scheme.codes == "int2" else 1)
    grid = fit_grid(random_weights(3, 16), scheme)
    fake = FakeQuantized(weight, scheme, grid=grid)
    assert fake.gain is not None
    fake(weight).sum().backward()
    slope = torch.stack([part.sum(1) for part in grid.encode(weight).split(grid.scheme.columns_per_scale(16), 1)], 1)
    assert fake.gain.grad is not None
    assert torch.allclose(fake.gain.grad, slope * grid.scales, rtol=1e-5, atol=1e-8)


def test_learned_scales_fit_better_than_fixed_ones() -> None:
    # One row of values that two bits cannot all meet; the weights themselves are frozen.
    weight = random_weights(4, 64)
    losses = {}
    for decay, scales in ((1.0, "ema"), (1.0, "learned")):
        fake = FakeQuantized(weight * 1.0, TERNARY, grid=fit_grid(weight * 2, TERNARY), scales=scales, decay=decay)
        if fake.gain is not None:
            optimizer = torch.optim.Adam(fake.parameters(), lr=0.05)
            for _ in range(40):
                optimizer.zero_grad()
                functional.mse_loss(fake(weight), weight).backward()
                optimizer.step()
        losses[scales] = float(functional.mse_loss(fake(weight).detach(), weight))
    assert losses["learned"] < losses["ema"] / 2


def test_a_moving_average_follows_the_weights_once_a_step() -> None:
    weight = torch.nn.Parameter(random_weights(3, 16))
    fake = FakeQuantized(weight, Scheme(codes="int4", block="row"), scales="ema", decay=0.75)
    before = fake.range.clone()
    with torch.no_grad():
        weight.mul_(2.0)
    for _ in range(3):  # a tied weight is used twice a step
        fake(weight)
    assert torch.allclose(fake.range, before * (0.75 + 0.25 * 2))
    fake.eval()
    with torch.no_grad():
        weight.mul_(2.0)
    fake(weight)
    assert torch.allclose(fake.range, before * 1.25)


def tiny(scheme: Scheme, settings: QatSettings) -> tuple[torch.nn.Module, FakeQuantization]:
    model = build_model(ModelSettings(preset="glm-0.1m"), text_task(), seed=0)
    grids = {name: fit_grid(matrix.weight.detach(), scheme) for name, matrix in list_matrices(model).items()}
    return model, attach(model, grids, settings)


def step(model: torch.nn.Module, penalty: EntropyPenalty | None = None) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    ids = torch.randint(97, 122, (4, 16), generator=torch.Generator().manual_seed(0))
    loss = model(input_ids=ids, labels=ids).loss
    if penalty is not None:
        loss = loss + penalty.penalty(model)
    loss.backward()
    optimizer.step()


def test_a_tied_embedding_is_one_matrix_and_a_model_comes_off_as_it_was_packed() -> None:
    model, quantization = tiny(Scheme(codes="int4", block=32), QatSettings())
    step(model)
    ids = torch.arange(97, 113)[None]
    model.eval()
    with torch.no_grad():
        before = model(input_ids=ids).logits
    codes = quantization.export()
    assert len(codes) == 1 + 2 * 6
    quantization.detach()
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all("parametrizations" not in name for name in model.state_dict())
    for name, matrix in codes.items():
        assert matrix.dequantize().tobytes() == model.state_dict()[name].numpy().tobytes(), name
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)


def test_a_copy_of_a_fake_quantized_model_trains_by_itself() -> None:
    model, quantization = tiny(TERNARY, QatSettings())
    before = {name: matrix.codes.copy() for name, matrix in quantization.export().items()}
    twin = copy.deepcopy(model)
    step(twin)
    assert all(np.array_equal(matrix.codes, before[name]) for name, matrix in quantization.export().items())


def test_frozen_parts_keep_their_codes_and_the_rest_trains() -> None:
    model, quantization = tiny(TERNARY, QatSettings(frozen=("model.embed_tokens.*", "*norm.weight")))
    before = {name: matrix.dequantize() for name, matrix in quantization.export().items()}
    norms = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("norm.weight")}
    step(model)
    after = {name: matrix.dequantize() for name, matrix in quantization.export().items()}
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == before.keys() - {"model.embed_tokens.weight"}
    assert all(torch.equal(p, norms[name]) for name, p in model.named_parameters() if name in norms)
    with pytest.raises(ModelError, match=r"no parameter is called 'model.embedding"):
        tiny(TERNARY, QatSettings(frozen=("model.embedding.*",)))


def test_a_name_that_is_no_matrix_is_named() -> None:
    model = build_model(ModelSettings(preset="glm-0.1m"), text_task(), seed=0)
    with pytest.raises(ModelError, match=r"no matrix 'model\.norm\.weight' to quantize"):
        attach(model, {"model.norm.weight": fit_grid(random_weights(), TERNARY)}, QatSettings())


def test_entropy_is_that_of_the_frequencies() -> None:
    codes = torch.tensor([[0.0] * 8 + [1.0] * 4 + [-1.0] * 4])
    assert measure_entropy(codes, TERNARY) == 1.5
    assert measure_entropy(torch.zeros(2, 5), TERNARY) == 0


def test_the_length_of_codes_has_the_slope_of_its_neighbours_costs() -> None:
    codes = torch.tensor([[0.0] * 60 + [1.0] * 20 + [-1.0] * 20])
    places = torch.tensor([[0.2] * 60 + [0.7] * 20 + [-0.7] * 20]).requires_grad_()
    length = soft_length(places, codes, TERNARY)
    length.backward()
    zero, one = -np.log2(61 / 103), -np.log2(21 / 103)
    assert places.grad is not None
    assert float(length.detach()) == pytest.approx(
        60 * (zero + 0.2 * (one - zero)) + 40 * (zero + 0.7 * (one - zero)), rel=1e-5
    )
    assert torch.allclose(places.grad, torch.sign(places.detach()) * float(one - zero), rtol=1e-5)


def test_the_penalty_draws_codes_to_the_frequent_ones() -> None:
    entropies = {}
    for rate in (0.0, 3.0):
        model, quantization = tiny(Scheme(codes="ternary", block="row"), QatSettings(rate=rate))
        penalty = EntropyPenalty(quantization, rate) if rate else None
        for _ in range(15):
            step(model, penalty)
        entropies[rate] = np.mean([measure_entropy(torch.from_numpy(matrix.codes).float(), TERNARY)
                                   for matrix in quantization.export().values()])  # fmt: skip
    assert entropies[3.0] < entropies[0.0] - 0.01
