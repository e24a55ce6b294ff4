"""The algebra of cutting: what is cut off computes as if it were zero, and what is padded as if it were not there."""

import copy
import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prunable_glms import SMALL, byte_examples, logits, small_glm
from pydantic import ValidationError
from small_tasks import TASKS, text_task
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from fedglm.autoglm.light.pruning.errors import PruningError
from fedglm.autoglm.light.pruning.plan import LayerPlan, PruningPlan
from fedglm.autoglm.light.pruning.shape import LAYERS_KEY, ModelShape
from fedglm.autoglm.light.pruning.surgery import apply_plan, pad_layers, read_shape, trim_layers

WIDTH = SMALL.hidden // SMALL.heads
QUERIES = SMALL.heads // SMALL.kv_heads
BOTH = (text_task(), text_task(("no", "yes")))
LAYERS = {"lm": AutoModelForCausalLM, "classes": AutoModelForSequenceClassification}


@cache
def kept_glm(task=None):
    """The small model of a task, made once, for what leaves it as it is."""
    return small_glm(task)


def subsets(size):
    return st.sets(st.integers(0, size - 1), min_size=1).map(lambda found: tuple(sorted(found)))


@st.composite
def plans(draw, alike=False):
    """Plans for the small model; alike, all layers keep as many units."""
    kept = draw(subsets(SMALL.layers))
    channels, groups = draw(subsets(SMALL.intermediate)), draw(subsets(SMALL.kv_heads))
    return PruningPlan(
        layers=tuple(
            LayerPlan(
                layer=layer,
                channels=channels if alike else draw(subsets(SMALL.intermediate)),
                groups=groups if alike else draw(subsets(SMALL.kv_heads)),
            )
            for layer in kept
        )
    )


def zero_what_is_cut(model, plan):
    """The whole model, whose cut units add nothing: their outgoing weights are zero."""
    zeroed = copy.deepcopy(model)
    kept_layers = {kept.layer: kept for kept in plan.layers}
    with torch.no_grad():
        for number, layer in enumerate(zeroed.model.layers):
            kept = kept_layers.get(number)
            down, output = layer.mlp.down_proj.weight, layer.self_attn.o_proj.weight
            for channel in set(range(SMALL.intermediate)) - set(kept.channels if kept else ()):
                down[:, channel] = 0
            for group in set(range(SMALL.kv_heads)) - set(kept.groups if kept else ()):
                output[:, group * QUERIES * WIDTH : (group + 1) * QUERIES * WIDTH] = 0
    return zeroed


def assert_same(actual, expected):
    """Sums of some hundred float32 in another order, through all layers, of which the largest logit gives the scale."""
    assert (actual - expected).abs().max() <= 1000 * 2.0**-24 * expected.abs().max()


@TASKS
@given(plan=plans())
@settings(max_examples=15, deadline=None)
def test_a_cut_computes_as_if_the_rest_were_zero(task, plan):
    model = kept_glm(task)
    small = apply_plan(model, plan)
    assert_same(logits(small), logits(zero_what_is_cut(model, plan)))


def test_a_cut_that_zeroes_something_else_is_noticed():
    model = small_glm()
    keep = PruningPlan.keep_all(read_shape(model))
    first = keep.layers[0].model_copy(update={"channels": tuple(range(1, SMALL.intermediate))})
    plan = keep.model_copy(update={"layers": (first, *keep.layers[1:])})
    other = first.model_copy(update={"channels": tuple(range(SMALL.intermediate - 1))})
    wrong = keep.model_copy(update={"layers": (other, *keep.layers[1:])})
    difference = logits(apply_plan(model, plan)) - logits(zero_what_is_cut(model, wrong))
    assert difference.abs().max() > 1e-2


@given(plan=plans())
@settings(max_examples=15, deadline=None)
def test_parameters_are_counted_exactly(plan):
    for task in BOTH:
        small = apply_plan(kept_glm(task), plan)
        shape = plan.apply_to_shape(read_shape(kept_glm(task)))
        assert shape == read_shape(small)
        assert shape.parameters() == sum(parameter.numel() for parameter in small.parameters())


@given(plan=plans())
@settings(max_examples=10, deadline=None)
def test_padding_changes_no_output_and_is_undone(plan):
    small = apply_plan(kept_glm(), plan)
    padded = pad_layers(small)
    assert_same(logits(padded), logits(small))
    again = trim_layers(padded)
    assert read_shape(again) == read_shape(small)
    for (name, left), (_, right) in zip(again.named_parameters(), small.named_parameters(), strict=True):
        assert torch.equal(left, right), name


@pytest.mark.parametrize("alike", [True, False])
@TASKS
def test_transformers_loads_what_was_cut(task, alike, tmp_path):
    uneven = ((0, 1, 5), (2, 4)) if not alike else ((0, 1, 5), (2, 3, 4))
    plan = PruningPlan(
        layers=tuple(
            LayerPlan(layer=layer, channels=channels, groups=(1,))
            for layer, channels in zip((0, 2), uneven, strict=True)
        )
    )
    small = apply_plan(small_glm(task), plan)
    small.config.use_cache = True
    (small if alike else pad_layers(small)).save_pretrained(tmp_path)
    loader = LAYERS["classes" if task.classes else "lm"]
    loaded, report = loader.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(logits(loaded), logits(small))
    assert hasattr(loaded.config, LAYERS_KEY) is not alike
    assert loaded.config.intermediate_size == 3
    shape = ModelShape.from_config(loaded.config.to_dict(), classifier=bool(task.classes))
    assert shape == read_shape(small)
    if not task.classes:
        told = loaded.generate(torch.tensor([[97, 98]]), max_new_tokens=4, do_sample=False)
        assert torch.equal(told, small.generate(torch.tensor([[97, 98]]), max_new_tokens=4, do_sample=False))


def test_padding_stays_zero_in_training():
    task, model = text_task(), small_glm()
    keep = PruningPlan.keep_all(read_shape(model))
    first = keep.layers[0].model_copy(update={"channels": (3, 4), "groups": (1,)})
    small = pad_layers(apply_plan(model, keep.model_copy(update={"layers": (first, *keep.layers[1:])})))
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        task.sequence_losses(small, byte_examples().batch(range(6))).sum().backward()
        optimizer.step()
    trimmed = trim_layers(small)  # which refuses to cut off what is not zero
    assert_same(logits(trimmed), logits(small))
    with torch.no_grad():
        small.model.layers[0].mlp.down_proj.weight[0, -1] = 1
    with pytest.raises(PruningError, match="would cut off weights"):
        trim_layers(small)


@given(first=plans(), data=st.data())
@settings(max_examples=10, deadline=None)
def test_plans_compose(first, data):
    model = kept_glm()
    once = apply_plan(model, first)
    second = PruningPlan(
        layers=tuple(
            LayerPlan(
                layer=number,
                channels=data.draw(subsets(len(kept.channels))),
                groups=data.draw(subsets(len(kept.groups))),
            )
            for number, kept in enumerate(first.layers)
            if number in data.draw(subsets(len(first.layers))) or number == 0
        )
    )
    twice, together = apply_plan(once, second), apply_plan(model, first.then(second))
    for left, right in zip(twice.parameters(), together.parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_model_given_is_left_as_it_is():
    model = small_glm()
    before, config = {name: tensor.clone() for name, tensor in model.state_dict().items()}, model.config.to_dict()
    plan = PruningPlan(layers=(LayerPlan(layer=1, channels=(0,), groups=(1,)),))
    apply_plan(model, plan)
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_embedding_stays_tied():
    small = apply_plan(small_glm(), PruningPlan(layers=(LayerPlan(layer=1, channels=(0,), groups=(1,)),)))
    assert small.lm_head.weight is small.model.embed_tokens.weight


def test_what_is_no_plan_or_no_glm_is_refused():
    model = small_glm()
    for layer in (
        {"layer": 9, "channels": (0,), "groups": (0,)},
        {"layer": 0, "channels": (SMALL.intermediate,), "groups": (0,)},
        {"layer": 0, "channels": (0,), "groups": (SMALL.kv_heads,)},
    ):
        with pytest.raises(PruningError):
            apply_plan(model, PruningPlan(layers=(LayerPlan(**layer),)))
    for bad in ((), (1, 1), (2, 1), (-1,)):
        with pytest.raises(ValidationError):
            LayerPlan(layer=0, channels=bad, groups=(0,))
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    with pytest.raises(PruningError, match="only a GLM"):
        read_shape(LlamaForCausalLM(LlamaConfig(**tiny)))


def test_a_configuration_that_contradicts_itself_is_refused():
    config = small_glm().config.to_dict()
    with pytest.raises(PruningError, match="only a GLM"):
        ModelShape.from_config(config | {"model_type": "llama"}, classifier=False)
    for layers in ([{"intermediate_size": 3}], [{}], "ab", [[1]]):
        with pytest.raises(PruningError, match=LAYERS_KEY):
            ModelShape.from_config(config | {LAYERS_KEY: layers}, classifier=False)
    layer = {"intermediate_size": 3, "num_key_value_heads": 2, "num_attention_heads": 3}
    with pytest.raises(PruningError, match="query heads"):
        ModelShape.from_config(config | {LAYERS_KEY: [layer] * SMALL.layers}, classifier=False)


def test_bytes_are_those_of_the_kinds_of_tensors():
    from fedglm.autoglm.light.pruning.shape import StorageBits

    model = small_glm()
    shape = read_shape(model)
    assert shape.bytes(StorageBits()) == 4 * shape.parameters()
    bits = StorageBits(embedding=4, matrix=2, vector=16)
    total = 0.0
    for name, parameter in model.named_parameters():
        each = 4 if "embed" in name else 16 if parameter.dim() == 1 else 2
        total += parameter.numel() * each / 8
    assert math.isclose(shape.bytes(bits), total)
    assert np.isclose(shape.bytes(bits), total)
