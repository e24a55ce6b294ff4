"""Proximal steps against the minimisation that defines them, and masks against the laws of their growth."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prunable_glms import SMALL, byte_examples, logits, small_glm
from pydantic import ValidationError
from small_tasks import text_task
from torch.nn.utils import parametrize

from fedglm.autoglm.light.distillation.settings import DistillationSettings, Stage
from fedglm.autoglm.light.distillation.training import train_student
from fedglm.autoglm.light.pruning.errors import PruningError
from fedglm.autoglm.light.pruning.masks import Mask, MaskHook, MaskSettings, attach_masks, remove_masks
from fedglm.autoglm.light.pruning.proximal import ProximalHook, ProximalSettings, plan_without_zeros
from fedglm.autoglm.light.pruning.surgery import apply_plan, read_shape


def masks_of(model):
    return [layer.mlp.down_proj.parametrizations["weight"][0].mask.clone() for layer in model.model.layers]


def train(model, hooks, *, steps=6, rate=1e-2):
    stage = Stage(steps=steps, alpha=0.0, learning_rate=rate, warmup_steps=0, decay="constant")
    training = DistillationSettings(stages=(stage,), batch_size=4, keep="last")
    examples = byte_examples(20)
    train_student(model, None, examples, training, task=text_task(), held_out=examples, seed=0, hooks=hooks)


# --- proximal steps


@pytest.mark.parametrize("penalty", ["group-lasso", "l1"])
@given(seed=st.integers(0, 1000), shrink=st.floats(0.05, 1.0))
@settings(max_examples=10, deadline=None)
def test_a_step_minimises_distance_plus_penalty(penalty, seed, shrink):
    model = small_glm(seed=seed)
    weight = model.model.layers[0].mlp.down_proj.weight
    before = weight.detach().clone()
    hook = ProximalHook(model, ProximalSettings(penalty=penalty, shrink=shrink))
    sizes = torch.cat(
        [
            layer.mlp.down_proj.weight.norm(dim=0) if penalty == "group-lasso" else layer.mlp.down_proj.weight.abs()
            for layer in model.model.layers
        ]
    )
    threshold = shrink * float(sizes.mean().detach())
    hook.after_update(model, 1)
    after = weight.detach()

    def objective(moved):
        norms = moved.norm(dim=0).sum() if penalty == "group-lasso" else moved.abs().sum()
        return 0.5 * (moved - before).square().sum() + threshold * norms

    generator = torch.Generator().manual_seed(seed)
    least = float(objective(after))
    for size in (1e-3, 1e-2, 0.1):
        assert least <= float(objective(after + size * torch.randn(after.shape, generator=generator))) + 1e-5 * least
    assert least <= min(float(objective(before)), float(objective(torch.zeros_like(before)))) * (1 + 1e-6)


def test_a_threshold_rises_over_its_ramp_and_zero_units_are_cut_for_nothing():
    model = small_glm()
    hook = ProximalHook(model, ProximalSettings(shrink=1.0, ramp_steps=4, units=("channels", "groups")))
    norms = [model.model.layers[0].mlp.down_proj.weight.detach().norm(dim=0)]
    for step in (1, 2):
        hook.after_update(model, step)
        norms.append(model.model.layers[0].mlp.down_proj.weight.detach().norm(dim=0))
    alive = norms[2] > 1e-3
    first, second = (norms[0] - norms[1])[alive], (norms[1] - norms[2])[alive]
    assert len(first)
    torch.testing.assert_close(second, 2 * first, rtol=1e-3, atol=1e-5)
    model = small_glm()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, ::3] = 0
        model.model.layers[1].self_attn.o_proj.weight[:, : SMALL.hidden // 2] = 0
        model.model.layers[2].mlp.down_proj.weight.zero_()
    plan = plan_without_zeros(model)
    assert [len(kept.channels) for kept in plan.layers] == [SMALL.intermediate * 2 // 3] * 2 + [1]
    assert [kept.groups for kept in plan.layers] == [(0, 1), (1,), (0, 1)]
    torch.testing.assert_close(logits(apply_plan(model, plan)), logits(model), rtol=1e-4, atol=1e-5)


def test_training_with_proximal_steps_makes_zeros_and_without_makes_none():
    free, shrunk = small_glm(), small_glm()
    train(free, ())
    train(shrunk, (ProximalHook(shrunk, ProximalSettings(shrink=0.25)),))
    assert all(len(kept.channels) == SMALL.intermediate for kept in plan_without_zeros(free).layers)
    assert sum(len(kept.channels) for kept in plan_without_zeros(shrunk).layers) < 3 * SMALL.intermediate


# --- masks


@pytest.mark.parametrize("unit", ["channel", "weight"])
def test_gradients_reach_what_is_masked_as_if_it_were_there(unit):
    model, examples, task = small_glm(), byte_examples(), text_task()
    plain = copy.deepcopy(model)
    attach_masks(model, MaskSettings(unit=unit, density=0.5, start_density=0.5, last_step=10))
    with torch.no_grad():  # the same function without a mask: its weights are the masked ones
        for layer, mask in zip(plain.model.layers, masks_of(model), strict=True):
            layer.mlp.down_proj.weight.mul_(mask)
    assert torch.equal(logits(model), logits(plain))
    for each in (model, plain):
        task.sequence_losses(each, examples.batch(range(6))).sum().backward()
    for masked, free in zip(model.model.layers, plain.model.layers, strict=True):
        gradient = masked.mlp.down_proj.parametrizations["weight"].original.grad
        torch.testing.assert_close(gradient, free.mlp.down_proj.weight.grad)
        mask = masked.mlp.down_proj.parametrizations["weight"][0].mask
        assert (gradient * (1 - mask)).abs().sum() > 0


@given(
    seed=st.integers(0, 1000),
    density=st.floats(0.1, 0.9),
    start=st.floats(0.1, 1.0),
    exchanged=st.floats(0, 1),
    unit=st.sampled_from(["channel", "weight"]),
    step=st.integers(1, 100),
)
@settings(max_examples=60, deadline=None)
def test_the_weakest_go_and_the_steepest_grow(seed, density, start, exchanged, unit, step):
    generator = torch.Generator().manual_seed(seed)
    weight, gradient = torch.randn(2, 6, 20, generator=generator)
    wanted = MaskSettings(
        unit=unit, density=min(density, start), start_density=start, exchanged=exchanged, last_step=100
    )
    hook, mask = MaskHook(wanted), Mask((1, 20) if unit == "channel" else (6, 20), like=weight)
    units = mask.mask.numel()
    before = torch.zeros(units, dtype=torch.bool)
    before[torch.randperm(units, generator=generator)[: hook.active(units, 0)]] = True
    with torch.no_grad():
        mask.mask.flatten()[:] = before.float()
    hook.change(mask, weight, gradient, step)
    after = mask.mask.flatten().bool()

    def sizes(tensor):
        return tensor.norm(dim=0) if unit == "channel" else tensor.abs().flatten()

    active = max(1, round((wanted.density + (start - wanted.density) * (1 - step / 100) ** 3) * units))
    share = exchanged / 2 * (1 + math.cos(math.pi * step / 100))
    grown, kept, gone = after & ~before, after & before, before & ~after
    assert int(after.sum()) == active
    assert int(grown.sum()) == min(round(share * active), int((~before).sum()))
    if kept.any() and gone.any():
        assert sizes(weight)[kept].min() >= sizes(weight)[gone].max()
    left = ~before & ~after
    if grown.any() and left.any():
        assert sizes(gradient)[grown].min() >= sizes(gradient)[left].max()


@pytest.mark.parametrize("masked", ["shadow", "zero"])
def test_training_follows_the_schedule_and_what_stays_masked_is_cut_for_nothing(masked):
    model = small_glm()
    wanted = MaskSettings(density=0.25, last_step=4, interval=2, masked=masked)
    hook = attach_masks(model, wanted)
    assert all(mask.all() for mask in masks_of(model))
    train(model, (hook,), steps=6)
    assert [int(mask.sum()) for mask in masks_of(model)] == [SMALL.intermediate // 4] * SMALL.layers
    for layer in model.model.layers:
        of_weight = layer.mlp.down_proj.parametrizations["weight"]
        shadow = float((of_weight.original * (1 - of_weight[0].mask)).detach().abs().sum())
        assert (shadow > 0) is (masked == "shadow")
    trained = logits(model)
    plan = remove_masks(model)
    assert torch.equal(logits(model), trained)
    small = apply_plan(model, plan)
    assert read_shape(small).layers[0].intermediate_size == SMALL.intermediate // 4
    torch.testing.assert_close(logits(small), trained, rtol=1e-4, atol=1e-5)


def test_masks_come_back():
    """A unit that was masked grows where its gradient is steep, as it could not with gradients cut off."""
    model = small_glm()
    hook = attach_masks(model, MaskSettings(density=0.5, start_density=0.5, interval=1, last_step=6, exchanged=0.5))
    start = masks_of(model)
    train(model, (hook,), steps=4)
    back = [int((new > old).sum()) for new, old in zip(masks_of(model), start, strict=True)]
    assert all(count > 0 for count in back)


def test_the_same_seed_gives_the_same_masks():
    found = []
    for _ in range(2):
        model = small_glm()
        train(model, (attach_masks(model, MaskSettings(density=0.5, interval=1, last_step=5)),))
        found.append(torch.stack(masks_of(model)))
    assert torch.equal(*found)


def test_what_cannot_be_masked_is_refused():
    model = small_glm()
    with pytest.raises(PruningError, match="no masks"):
        remove_masks(model)
    attach_masks(model, MaskSettings(density=0.5, last_step=1))
    with pytest.raises(PruningError, match="parametrization"):
        attach_masks(model, MaskSettings(density=0.5, last_step=1))
    with pytest.raises(ValidationError, match="start_density"):
        MaskSettings(density=0.5, start_density=0.4, last_step=1)
    frozen = small_glm().requires_grad_(requires_grad=False)
    hook = attach_masks(frozen, MaskSettings(density=0.5, interval=1, last_step=1))
    with pytest.raises(PruningError, match="have no gradient"):
        hook.before_update(frozen, 1)
    assert parametrize.is_parametrized(frozen.model.layers[0].mlp.down_proj)
    assert np.isfinite(logits(frozen).numpy()).all()
