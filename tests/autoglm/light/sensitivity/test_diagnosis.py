from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_glms import CLASSES, LANGUAGE, SHAPE, random_examples, tiny_glm
from transformers import BertConfig, BertModel

from fedglm.autoglm.errors import DataError, ModelError
from fedglm.autoglm.light.distillation.student import copy_layers
from fedglm.autoglm.light.sensitivity.diagnosis import DiagnosisSettings, diagnose
from fedglm.autoglm.light.sensitivity.groups import list_groups, replaced, without
from fedglm.autoglm.light.sensitivity.measurements import (
    measure_gradients,
    measure_hessian_diagonal,
    measure_input_energy,
    parameter_count,
)
from fedglm.autoglm.light.sensitivity.redundancy import compare_channels, compare_heads
from fedglm.autoglm.models.parameters import to_vector
from fedglm.inference.weights.quantized import QuantizedMatrix

TASKS = pytest.mark.parametrize("task", [LANGUAGE, CLASSES], ids=["language", "classes"])
FEW = DiagnosisSettings(sequences=6, channels=2, probes=1)


def quantize(weight, levels=7):
    """Plain rounding to INT4, a scale a row."""
    scales = (np.abs(weight).max(1, keepdims=True) / levels).astype(np.float16).astype(np.float32)
    codes = np.clip(np.rint(weight / np.where(scales > 0, scales, 1)), -levels, levels).astype(np.int8)
    return QuantizedMatrix(codes=codes, scales=scales, block=weight.shape[1], low=-levels, high=levels)


def groups_of(model, kind, channels=2):
    return [group for group in list_groups(model, channels=channels, seed=0) if group.kind == kind]


@TASKS
def test_a_model_is_unchanged_to_the_bit(task):
    model = tiny_glm(task, spread=3.0)
    model.model.norm.weight.requires_grad_(requires_grad=False)
    before, attention = {name: t.clone() for name, t in model.state_dict().items()}, model.config._attn_implementation
    found = diagnose(model, task, random_examples(8, task), quantize=quantize, settings=FEW)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (model.training, model.config._attn_implementation) == (True, attention)
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == [
        "model.norm.weight"
    ]
    assert all(parameter.grad is None for parameter in model.parameters())
    again = diagnose(model, task, random_examples(8, task), quantize=quantize, settings=FEW)
    assert again == found
    assert found.sequences == 6


@TASKS
def test_the_loss_without_a_layer_is_that_of_a_model_without_it(task):
    model, examples = tiny_glm(task, spread=3.0), random_examples(6, task)
    found = diagnose(model, task, examples, quantize=quantize, settings=FEW)
    for layer in range(3):
        rest = copy_layers(model, [number for number in range(3) if number != layer])
        row = next(row for row in found.rows if (row.kind, row.layer) == ("layer", layer))
        assert row.removal == pytest.approx(task.evaluate(rest, examples).loss - found.loss, abs=1e-5)


def test_the_loss_without_a_channel_is_that_of_a_narrower_feed_forward_layer():
    model = tiny_glm(spread=3.0).eval()
    group = groups_of(model, "channel")[0]
    kept = torch.tensor([channel for channel in range(SHAPE.intermediate) if channel != group.number])
    mlp = model.model.layers[0].mlp
    hidden = torch.randn(2, 5, SHAPE.hidden)
    with replaced(model, without(model, group.columns)), torch.no_grad():
        cut = mlp(hidden)
    with torch.no_grad():
        gate, up = (half[kept] for half in mlp.gate_up_proj.weight.chunk(2))
        narrow = (torch.nn.functional.silu(hidden @ gate.T) * (hidden @ up.T)) @ mlp.down_proj.weight[:, kept].T
    assert torch.allclose(cut, narrow, atol=1e-4)


def test_groups_hold_every_parameter_of_a_layer_but_its_norms():
    model = tiny_glm()
    for layer, group in enumerate(groups_of(model, "layer")):
        own = dict(model.model.layers[layer].named_parameters())
        norms = sum(parameter.numel() for name, parameter in own.items() if "norm" in name)
        assert parameter_count(model, group) == sum(parameter.numel() for parameter in own.values()) - norms
        parts = [part for part in list_groups(model, channels=0, seed=0)
                 if part.layer == layer and part.kind in ("ffn", "kv-group")]  # fmt: skip
        assert parameter_count(model, group) == sum(parameter_count(model, part) for part in parts)
    channel = groups_of(model, "channel")[0]
    assert parameter_count(model, channel) == 3 * SHAPE.hidden


def test_a_kv_group_is_what_no_other_head_reads():
    model, hidden = tiny_glm(spread=3.0).eval(), torch.randn(1, 6, SHAPE.hidden)
    first, second = (group for group in groups_of(model, "kv-group") if group.layer == 1)
    batch = random_examples(3).batch(range(3))
    rows = {name: model.get_parameter(name).detach().clone() for name in first.rows}
    for name, chosen in first.rows.items():
        rows[name][chosen] = torch.randn_like(rows[name][chosen])
    changed = without(model, first.columns)
    with torch.no_grad():
        with replaced(model, changed):
            one = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits
        with replaced(model, changed | rows):  # its other weights no longer matter
            other = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits
    assert torch.equal(one, other)
    assert not set(first.columns["model.layers.1.self_attn.o_proj.weight"].tolist()) & set(
        second.columns["model.layers.1.self_attn.o_proj.weight"].tolist()
    )
    assert hidden.shape[-1] == SHAPE.hidden


@TASKS
def test_taylor_is_the_slope_of_the_loss_as_a_group_fades(task):
    model, examples = tiny_glm(task, spread=4.0).double().eval(), random_examples(1, task)
    slopes, gradients = [], measure_gradients(model, task, examples)
    for kind in ("layer", "ffn", "kv-group", "channel"):
        group = groups_of(model, kind)[-1]
        gone, step = without(model, group.columns), 1e-3
        with torch.no_grad():
            here = {name: model.get_parameter(name).clone() for name in gone}
            losses = []
            for share in (step, -step):
                faded = {name: here[name] + share * (gone[name] - here[name]) for name in gone}
                with replaced(model, faded):
                    losses.append(float(task.losses(model(
                        **{n: t for n, t in examples.batch([0]).items() if n != "labels"}).logits,
                        examples.batch([0]))))  # fmt: skip
        slopes.append(abs(losses[0] - losses[1]) / (2 * step))
        # Logits are rounded to float32, so gradients are good to about 1e-6 of the largest.
        assert gradients.taylor_of(group) == pytest.approx(slopes[-1], rel=1e-2, abs=1e-5)
    assert max(slopes) > 1e-2


def test_fisher_is_half_the_mean_square_of_gradient_times_weight():
    model, examples = tiny_glm(spread=2.0).eval(), random_examples(4)
    group = groups_of(model, "channel")[0]
    name, columns = next(iter(group.columns.items()))
    total = 0.0
    for number in range(4):
        model.zero_grad()
        LANGUAGE.sequence_losses(model, examples.batch([number])).mean().backward()
        weight = model.get_parameter(name)
        total += float((weight.grad * weight.detach())[:, columns].double().square().sum()) / 4
    model.zero_grad(set_to_none=True)
    assert measure_gradients(model, LANGUAGE, examples).fisher_of(group) == pytest.approx(total / 2, rel=1e-4)


class Quadratic(torch.nn.Module):
    """A loss w A w / 2, whose Hessian is A, in the place of a model."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix, self.config = matrix, SimpleNamespace(_attn_implementation="sdpa")
        self.a, self.b = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))

    def set_attn_implementation(self, name):
        self.config._attn_implementation = name


class QuadraticTask:
    def prediction_counts(self, examples):
        return torch.ones(len(examples), dtype=torch.float64)

    def sequence_losses(self, model, batch):
        assert model.config._attn_implementation == "eager"
        weights = torch.cat((model.a, model.b.flatten()))
        return (weights @ model.matrix @ weights / 2).expand(len(batch["labels"]))


def estimate_traces(matrix, seeds):
    model, examples = Quadratic(matrix), random_examples(5)
    groups = {"a": torch.arange(3)}, {"b": torch.tensor([1])}
    found = []
    for seed in range(seeds):
        sums = measure_hessian_diagonal(model, QuadraticTask(), examples, probes=2, seed=seed, batch_size=2)
        found.append([sums.total(rows=rows, columns={}) for rows in groups])
    assert model.config._attn_implementation == "sdpa"
    return np.array(found)


def test_hutchinson_finds_the_trace_of_each_block():
    diagonal = torch.tensor([1.0, -2, 4, 0, 8, 16, 32])
    assert np.allclose(estimate_traces(torch.diag(diagonal), 2), [3, 48])  # without other entries every probe is exact
    other = torch.triu(torch.randn(7, 7, generator=torch.Generator().manual_seed(0)), 1)
    found = estimate_traces(torch.diag(diagonal) + other + other.T, 200)
    error = found.std(0, ddof=1) / np.sqrt(200)
    assert (abs(found.mean(0) - [3, 48]) < 5 * error).all()
    assert (abs(found.mean(0) - [6, 96]) > 5 * error).all()  # it would tell a wrong one
    assert (error > 0).all()


def test_energy_is_that_of_real_tokens():
    model, examples = tiny_glm(spread=2.0).eval(), random_examples(8)
    seen = []
    handle = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    batch = examples.batch(range(8))
    with torch.no_grad():
        LANGUAGE.sequence_losses(model, batch)
    handle.remove()
    wanted = seen[0][batch["attention_mask"].bool()].double().square().mean(0)
    energy = measure_input_energy(model, LANGUAGE, examples, batch_size=3)
    assert torch.allclose(energy["model.layers.0.mlp.down_proj.weight"], wanted, rtol=1e-4)
    frequency = energy["model.embed_tokens.weight"]
    assert float(frequency.sum()) == pytest.approx(1)
    assert float(frequency[LANGUAGE.pad_id]) == 0


def test_what_is_quantized_is_the_group_alone():
    model, examples = tiny_glm(spread=3.0), random_examples(6)
    found = {row.name: row for row in diagnose(model, LANGUAGE, examples, quantize=quantize, settings=FEW).rows}
    name = "model.layers.1.mlp.gate_up_proj.weight", "model.layers.1.mlp.down_proj.weight"
    coded = {one: torch.from_numpy(quantize(model.get_parameter(one).detach().numpy()).dequantize()) for one in name}
    with replaced(model, coded):
        loss = LANGUAGE.evaluate(model, examples).loss
    start = LANGUAGE.evaluate(model, examples).loss
    assert found["1 ffn"].quantization == pytest.approx(loss - start, abs=1e-7)
    error = sum(float((coded[one] - model.get_parameter(one)).detach().double().square().sum()) for one in name)
    assert found["1 ffn"].error == pytest.approx(error, rel=1e-9)
    groups = [found[f"1 kv-group {number}"].error for number in range(2)]
    assert found["1 layer"].error == pytest.approx(error + sum(groups), rel=1e-9)
    assert found["embedding"].removal is None


def test_removal_in_order_leaves_what_the_score_puts_last():
    # Channels that put out nothing: activations and gradients see it, and it costs nothing. L1 sees their large gates.
    model, examples = tiny_glm(spread=3.0), random_examples(6)
    dead = torch.arange(0, SHAPE.intermediate, 2)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, dead] = 0
            layer.mlp.gate_up_proj.weight[dead] *= 50
    chosen = FEW.model_copy(update={"removed_shares": (0.5,)})
    found = diagnose(model, LANGUAGE, examples, quantize=quantize, settings=chosen)
    rises = {curve.order: curve.rise for curve in found.curves}
    assert [rises[order] for order in ("taylor", "fisher", "activation")] == [0, 0, 0]
    assert abs(rises["l1"]) > 1e-3
    assert len({curve.order: curve for curve in found.curves}["random"].rises) == 3


def test_similar_heads_and_channels_are_found_in_any_basis():
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(400, 3, 4, generator=generator)
    turned, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator))
    heads[:, 2] = 3 * heads[:, 0] @ turned + 1
    similarity = compare_heads(heads)
    assert float(similarity[2, 0]) == pytest.approx(1, abs=1e-6)
    assert float(similarity[1, 0]) < 0.2
    channels = torch.randn(400, 3, generator=generator)
    channels[:, 2] = -2 * channels[:, 1]
    similarity = compare_channels(channels)
    assert float(similarity[2, 1]) == pytest.approx(1, abs=1e-6)
    assert float(similarity[1, 0]) < 0.3
    assert torch.equal(compare_channels(torch.zeros(4, 2)), torch.zeros(2, 2, dtype=torch.float64))


def test_what_cannot_be_diagnosed_is_said():
    with pytest.raises(DataError, match="there are none"):
        diagnose(tiny_glm(), LANGUAGE, random_examples(4).select([]), quantize=quantize)
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    with pytest.raises(ModelError, match="on a GLM, not on a BertModel"):
        list_groups(bert, channels=1, seed=0)
    assert len(to_vector(tiny_glm())) > 0
