"""Budgets are met exactly as counted, and nothing better that was allowed is left out."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prunable_glms import SMALL, byte_examples, logits, small_glm
from pydantic import ValidationError
from small_tasks import TASKS, text_task

from fedglm.autoglm.light.distillation.settings import DistillationSettings, Stage
from fedglm.autoglm.light.distillation.training import train_student
from fedglm.autoglm.light.pruning.errors import PruningError
from fedglm.autoglm.light.pruning.prune import prune
from fedglm.autoglm.light.pruning.scores import LayerScores
from fedglm.autoglm.light.pruning.selection import CostModel, choose_plan
from fedglm.autoglm.light.pruning.settings import Budget, PruningSettings
from fedglm.autoglm.light.pruning.shape import LayerShape, ModelShape, StorageBits
from fedglm.autoglm.light.pruning.surgery import read_shape


def shape_of(layers, intermediate, groups):
    layer = LayerShape(intermediate_size=intermediate, num_key_value_heads=groups, num_attention_heads=2 * groups)
    fields = {
        "hidden": 8,
        "head_dim": 4,
        "queries_per_group": 2,
        "attention_bias": True,
        "vocabulary": 16,
        "outputs": 0,
    }
    return ModelShape(layers=(layer,) * layers, **fields)


def random_scores(shape, seed):
    rng = np.random.default_rng(seed)
    return tuple(
        LayerScores(
            layer=float(rng.random() * 5),
            channels=rng.random(layer.intermediate_size),
            groups=rng.random(layer.num_key_value_heads) * 3,
        )
        for layer in shape.layers
    )


def lost(plan, scores, weight=1.0):
    total = 0.0
    kept_layers = {kept.layer: kept for kept in plan.layers}
    for number, layer in enumerate(scores):
        if number not in kept_layers:
            total += weight * layer.layer
            continue
        kept = kept_layers[number]
        total += layer.channels.sum() - layer.channels[list(kept.channels)].sum()
        total += layer.groups.sum() - layer.groups[list(kept.groups)].sum()
    return total


@given(
    seed=st.integers(0, 10_000), share=st.floats(0.3, 1.0), per_layer=st.booleans(), multiple=st.sampled_from([1, 4])
)
@settings(max_examples=60, deadline=None)
def test_a_budget_of_parameters_is_met_and_used_up(seed, share, per_layer, multiple):
    shape = shape_of(3, 12, 3)
    scores = random_scores(shape, seed)
    limit = int(share * shape.parameters())
    wanted = PruningSettings(
        budget=Budget(parameters=limit), per_layer=per_layer, channel_multiple=multiple, min_channels=2
    )
    plan = choose_plan(shape, scores, wanted, CostModel(config={}))
    found = plan.apply_to_shape(shape)
    assert found.parameters() <= limit
    assert all(layer.intermediate_size % multiple == 0 for layer in found.layers)
    assert all(layer.intermediate_size >= 2 for layer in found.layers)
    assert per_layer or found.is_homogeneous
    if found.layers != shape.layers:  # one step of channels more would break it, wherever channels were cut
        step = multiple * shape.channel_parameters() * (1 if per_layer else len(found.layers))
        if any(layer.intermediate_size < 12 for layer in found.layers):
            assert found.parameters() + step > limit


@given(seed=st.integers(0, 10_000), share=st.floats(0.35, 1.0))
@settings(max_examples=20, deadline=None)
def test_no_homogeneous_plan_loses_less(seed, share):
    shape = shape_of(3, 6, 2)
    scores = random_scores(shape, seed)
    limit = int(share * shape.parameters())
    wanted = PruningSettings(budget=Budget(parameters=limit))
    plan = choose_plan(shape, scores, wanted, CostModel(config={}))
    order = np.argsort([layer.layer for layer in scores])
    best = np.inf
    for gone, channels, groups in itertools.product(range(3), range(1, 7), range(1, 3)):
        layers = [number for number in range(3) if number not in order[:gone]]
        total = sum(scores[number].layer for number in order[:gone])
        size = shape.with_layers(
            (LayerShape(intermediate_size=channels, num_key_value_heads=groups, num_attention_heads=2 * groups),)
            * len(layers)
        )
        if size.parameters() <= limit:
            total += sum(np.sort(scores[n].channels)[: 6 - channels].sum() for n in layers)
            total += sum(np.sort(scores[n].groups)[: 2 - groups].sum() for n in layers)
            best = min(best, total)
    assert lost(plan, scores) == pytest.approx(best)


@given(seed=st.integers(0, 10_000), share=st.floats(0.4, 0.9))
@settings(max_examples=30, deadline=None)
def test_layers_of_their_own_widths_lose_no_more_of_the_channels(seed, share):
    shape = shape_of(3, 12, 3)
    scores = random_scores(shape, seed)
    limit = int(share * shape.parameters())
    fields = {"budget": Budget(parameters=limit), "units": ("channels",)}
    if shape.parameters() - limit > 33 * shape.channel_parameters():
        return  # more than all channels but one a layer
    costs = CostModel(config={})
    alike = lost(choose_plan(shape, scores, PruningSettings(**fields), costs), scores)
    apart = lost(choose_plan(shape, scores, PruningSettings(per_layer=True, **fields), costs), scores)
    assert apart <= alike + 1e-12


def test_limits_of_bytes_and_of_cost_hold_together():
    shape, scores = shape_of(2, 12, 3), random_scores(shape_of(2, 12, 3), 1)
    bits = StorageBits(embedding=4.5, matrix=1.6, vector=16)
    seen = []

    def cost(config):
        seen.append(config)
        return config["num_hidden_layers"] * (config["intermediate_size"] + 5 * config["num_key_value_heads"])

    costs = CostModel(config={"model_type": "glm", "fedglm_layers": None}, cost=cost)
    budget = Budget(bytes=0.8 * shape.bytes(bits), bits=bits, latency=0.6 * costs.latency(shape))
    plan = choose_plan(shape, scores, PruningSettings(budget=budget), costs)
    found = plan.apply_to_shape(shape)
    assert found.bytes(bits) <= budget.bytes
    assert costs.latency(found) <= budget.latency
    assert all(config["model_type"] == "glm" and "fedglm_layers" not in config for config in seen)
    per_layer = PruningSettings(budget=Budget(latency=0.6 * costs.latency(shape)), per_layer=True)
    found = choose_plan(shape, scores, per_layer, costs).apply_to_shape(shape)
    assert costs.latency(found) <= 0.6 * costs.latency(shape)
    with pytest.raises(PruningError, match="cost function"):
        choose_plan(shape, scores, per_layer, CostModel(config={}))


def test_an_impossible_budget_is_refused():
    shape = shape_of(2, 12, 3)
    for per_layer in (False, True):
        tiny = PruningSettings(budget=Budget(parameters=10), per_layer=per_layer)
        with pytest.raises(PruningError, match="smallest model"):
            choose_plan(shape, random_scores(shape, 0), tiny, CostModel(config={}))
    with pytest.raises(ValidationError, match="limits"):
        Budget()
    several = PruningSettings(budget=Budget(parameters=10), steps=2)
    with pytest.raises(PruningError, match="training between"):
        prune(small_glm(), text_task(), byte_examples(), several, seed=0)


@TASKS
@pytest.mark.parametrize("per_layer", [False, True])
def test_a_model_is_cut_to_its_budget_the_same_each_time(task, per_layer):
    model, examples = small_glm(task), byte_examples(20)
    limit = int(0.7 * read_shape(model).parameters())
    wanted = PruningSettings(budget=Budget(parameters=limit), per_layer=per_layer)
    first = prune(model, task, examples, wanted, seed=3)
    second = prune(model, task, examples, wanted, seed=3)
    assert first.plan == second.plan
    assert torch.equal(logits(first.model), logits(second.model))
    counted = sum(parameter.numel() for parameter in first.model.parameters())
    assert counted == first.shape.parameters() <= limit
    assert first.plan.apply_to_shape(read_shape(model)) == first.shape
    assert PruningSettings.model_validate_json(wanted.model_dump_json()) == wanted


def test_several_cuts_come_down_to_the_budget_with_training_between():
    task, examples = text_task(), byte_examples(20)
    model = small_glm()
    limit = int(0.5 * read_shape(model).parameters())
    stage = Stage(steps=2, alpha=0.5, learning_rate=1e-3)
    sizes, trained = [], []

    def train(student, step):
        trained.append((step, read_shape(student).parameters()))
        training = DistillationSettings(stages=(stage,), batch_size=4)
        train_student(student, model, examples, training, task=task, held_out=examples, seed=step)

    wanted = PruningSettings(budget=Budget(parameters=limit), steps=3)
    found = prune(
        model, task, examples, wanted, seed=0, train=train,
        progress=lambda step, shape: sizes.append((step, shape.parameters())),
    )  # fmt: skip
    assert [step for step, _ in sizes] == [1, 2, 3]
    assert trained == [(step - 1, size) for step, size in sizes]
    counts = [size for _, size in sizes]
    assert read_shape(model).parameters() > counts[0] >= counts[1] >= counts[2]
    assert counts[2] == found.shape.parameters() <= limit
    # The cubic: behind the first of three cuts 1 - (2/3)^3 of the way is gone.
    whole = read_shape(model).parameters()
    assert counts[0] <= whole - (1 - (2 / 3) ** 3) * (whole - limit) + 1
    assert found.plan.apply_to_shape(read_shape(model)) == found.shape
    assert read_shape(model).layers[0].intermediate_size == SMALL.intermediate
