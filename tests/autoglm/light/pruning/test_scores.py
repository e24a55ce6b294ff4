"""Scores and refitting against their definitions, computed the long way."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prunable_glms import SMALL, byte_examples, small_glm
from small_tasks import TASKS, text_task

from fedglm.autoglm.errors import DataError
from fedglm.autoglm.light.pruning.calibration import collect_statistics
from fedglm.autoglm.light.pruning.errors import PruningError
from fedglm.autoglm.light.pruning.plan import PruningPlan
from fedglm.autoglm.light.pruning.refitting import apply_plan_and_refit, refit
from fedglm.autoglm.light.pruning.scores import eliminate, score_units
from fedglm.autoglm.light.pruning.surgery import apply_plan, read_shape

METHODS = ("energy", "reconstruction", "taylor", "fisher", "l1", "random")
WIDTH = SMALL.hidden // SMALL.heads * (SMALL.heads // SMALL.kv_heads)


def inputs_of(model, examples, name):
    """The inputs of each layer's projection at real tokens, and the stream behind each layer."""
    seen, handles = [], []
    for layer in model.model.layers:
        part = layer.get_submodule(name)
        handles.append(part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().double())))
    batch = examples.batch(range(len(examples)))
    with torch.no_grad():
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for handle in handles:
        handle.remove()
    return [each[batch["attention_mask"].bool()] for each in seen]


def test_statistics_are_means_over_real_tokens_whatever_the_batch():
    model, examples, task = small_glm(), byte_examples(), text_task()
    found = collect_statistics(model, task, examples, derivatives=True)
    one_by_one = collect_statistics(model, task, examples, derivatives=True, batch_size=1)
    for name, field in (("mlp.down_proj", "channel_gram"), ("self_attn.o_proj", "head_gram")):
        for layer, rows in enumerate(inputs_of(model, examples, name)):
            torch.testing.assert_close(getattr(found[layer], field), rows.T @ rows / len(rows), rtol=1e-5, atol=1e-8)
    for left, right in zip(found, one_by_one, strict=True):
        torch.testing.assert_close(left.channel_gram, right.channel_gram, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(left.groups.absolute, right.groups.absolute, rtol=1e-3, atol=1e-6)
        assert left.update_energy == pytest.approx(right.update_energy, rel=1e-5)


@TASKS
def test_derivatives_are_those_of_factors_on_units(task):
    model, examples = small_glm(task), byte_examples(4)
    found = collect_statistics(model, task, examples, derivatives=True)[1]
    layer, batch, step = model.model.layers[1], examples.batch(range(4)), 1e-2

    def slopes(linear, columns):
        """The derivative of each sequence's loss by a factor on some columns, by central differences."""
        whole, losses = linear.weight.detach().clone(), []
        for sign in (1, -1):
            with torch.no_grad():
                linear.weight[:, columns] = whole[:, columns] * (1 + sign * step)
                losses.append(task.sequence_losses(model, batch).double())
                linear.weight.copy_(whole)
        return (losses[0] - losses[1]) / (2 * step)

    for unit in (0, 7):
        by_hand = slopes(layer.mlp.down_proj, [unit])
        assert float(found.channels.absolute[unit]) == pytest.approx(float(by_hand.abs().mean()), rel=0.05, abs=1e-4)
        assert float(found.channels.squared[unit]) == pytest.approx(float(by_hand.square().mean()), rel=0.1, abs=1e-5)
    for group in range(SMALL.kv_heads):
        by_hand = slopes(layer.self_attn.o_proj, list(range(group * WIDTH, (group + 1) * WIDTH)))
        assert float(found.groups.absolute[group]) == pytest.approx(float(by_hand.abs().mean()), rel=0.05, abs=1e-4)


def test_frozen_models_are_scored_too():
    task, model = text_task(), small_glm()
    free = score_units(model, collect_statistics(model, task, byte_examples(), derivatives=True), "taylor", seed=0)
    model.requires_grad_(requires_grad=False)
    frozen = score_units(model, collect_statistics(model, task, byte_examples(), derivatives=True), "taylor", seed=0)
    for left, right in zip(free, frozen, strict=True):
        assert np.allclose(left.channels, right.channels, rtol=1e-4)
        assert np.allclose(left.groups, right.groups, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_energy_is_what_a_unit_adds_to_the_stream():
    model, examples = small_glm(), byte_examples()
    statistics = collect_statistics(model, text_task(), examples, derivatives=False)
    scores = score_units(model, statistics, "energy", seed=0)
    for number, rows in enumerate(inputs_of(model, examples, "mlp.down_proj")):
        weight = model.model.layers[number].mlp.down_proj.weight.detach().double()
        by_hand = rows.square().mean(0) * weight.square().sum(0) / statistics[number].stream_energy
        assert np.allclose(scores[number].channels, by_hand.numpy(), rtol=1e-4)
    for number, rows in enumerate(inputs_of(model, examples, "self_attn.o_proj")):
        weight = model.model.layers[number].self_attn.o_proj.weight.detach().double()
        for group in range(SMALL.kv_heads):
            own = slice(group * WIDTH, (group + 1) * WIDTH)
            by_hand = (rows[:, own] @ weight[:, own].T).square().sum(1).mean() / statistics[number].stream_energy
            assert scores[number].groups[group] == pytest.approx(float(by_hand), rel=1e-4)


def problem(seed, units, width, rows=5, samples=200):
    generator = torch.Generator().manual_seed(seed)
    size = units * width
    mixing = torch.eye(size, dtype=torch.float64) + 0.4 * torch.rand(
        size, size, generator=generator, dtype=torch.float64
    )  # correlated, and not so nearly dependent that the damping shows
    data = torch.randn(samples, size, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    return weight, data


def best_error(weight, data, kept):
    """The mean squared error of the best map from the kept inputs alone."""
    target = data @ weight.T
    if not len(kept):
        return float(target.square().sum(1).mean())
    fitted = torch.linalg.lstsq(data[:, kept], target).solution
    return float((data[:, kept] @ fitted - target).square().sum(1).mean())


@given(seed=st.integers(0, 1000), width=st.sampled_from([1, 2, 3]))
@settings(max_examples=15, deadline=None)
def test_elimination_takes_the_unit_that_costs_least_and_says_its_cost(seed, width):
    units = 5
    weight, data = problem(seed, units, width)
    scores = eliminate(weight, data.T @ data / len(data), width)
    left, before, highest = list(range(units)), 0.0, 0.0

    def columns(chosen):
        return [unit * width + offset for unit in chosen for offset in range(width)]

    for unit in np.argsort(scores, kind="stable"):
        errors = {other: best_error(weight, data, columns([u for u in left if u != other])) for other in left}
        tied = {other for other in left if errors[other] <= min(errors.values()) * 1.01 + 1e-9}
        assert unit in tied
        highest = max(highest, errors[unit] - before)
        assert scores[unit] == pytest.approx(highest, rel=0.05, abs=1e-6 * float(weight.square().sum()))
        left.remove(int(unit))
        before = errors[unit]


@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_refitting_is_least_squares(seed):
    weight, data = problem(seed, 6, 1)
    kept = torch.tensor([0, 2, 3])
    fitted = refit(weight, data.T @ data / len(data), kept)
    error = float((data[:, kept] @ fitted.T - data @ weight.T).square().sum(1).mean())
    plain = float((data[:, kept] @ weight[:, kept].T - data @ weight.T).square().sum(1).mean())
    best = best_error(weight, data, kept)
    assert best <= error * (1 + 1e-9)
    assert error <= best + 0.02 * (plain - best)  # the ridge, at a thousandth of the mean energy, costs little


def test_refitting_lowers_the_error_and_a_whole_model_stays():
    model, examples, task = small_glm(), byte_examples(40), text_task()
    statistics = collect_statistics(model, task, examples, derivatives=False)
    whole = PruningPlan.keep_all(read_shape(model))
    same = apply_plan_and_refit(model, whole, statistics)
    for left, right in zip(same.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
    first = whole.layers[0].model_copy(update={"channels": tuple(range(0, SMALL.intermediate, 2))})
    plan = whole.model_copy(update={"layers": (first, *whole.layers[1:])})
    rows = inputs_of(model, examples, "mlp.down_proj")[0]
    wanted = rows @ model.model.layers[0].mlp.down_proj.weight.detach().double().T
    errors = []
    for small in (apply_plan(model, plan), apply_plan_and_refit(model, plan, statistics)):
        weight = small.model.layers[0].mlp.down_proj.weight.detach().double()
        errors.append(float((rows[:, list(first.channels)] @ weight.T - wanted).square().sum(1).mean()))
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_scores_every_unit(method):
    model = small_glm(seed=3)
    statistics = collect_statistics(model, text_task(), byte_examples(), derivatives=True)
    scores = score_units(model, statistics, method, seed=5)
    again = score_units(model, statistics, method, seed=5)
    for layer, same in zip(scores, again, strict=True):
        assert layer.channels.shape == (SMALL.intermediate,)
        assert layer.groups.shape == (SMALL.kv_heads,)
        assert np.isfinite([layer.layer, *layer.channels, *layer.groups]).all()
        assert np.array_equal(layer.channels, same.channels)
        assert np.array_equal(layer.groups, same.groups)
    if method == "random":
        assert not np.array_equal(scores[0].channels, score_units(model, statistics, method, seed=6)[0].channels)


def test_what_is_missing_is_named():
    model = small_glm()
    statistics = collect_statistics(model, text_task(), byte_examples(), derivatives=False)
    with pytest.raises(PruningError, match="derivatives"):
        score_units(model, statistics, "fisher", seed=0)
    with pytest.raises(DataError, match="calibrate"):
        collect_statistics(model, text_task(), byte_examples().select([]), derivatives=False)
