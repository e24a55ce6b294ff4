"""INT8 activations: dynamic and static ranges, their moving average, and what a wrong range costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_tasks import text_task

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.data.records import Records
from fedglm.autoglm.errors import DataError, ModelError
from fedglm.autoglm.light.quantization.activations import (
    ActivationQuantizer,
    calibrate_ranges,
    measure_shift_curve,
    quantized_activations,
)
from fedglm.autoglm.models.build import build_model
from fedglm.autoglm.settings import ModelSettings

torch.set_num_threads(1)


def examples() -> Examples:
    texts = ["the quick brown fox jumps over the lazy dog", "abc " * 30]
    return text_task().examples(Records(texts=texts, units=["a", "b"]))[0]


def test_dynamic_rounding_is_off_by_half_a_step_of_its_block_at_most() -> None:
    values = torch.randn(5, 7, 50, generator=torch.Generator().manual_seed(0))  # 50 is no multiple of 32
    rounded = ActivationQuantizer("dynamic")(values)
    for first in (0, 32):
        part = slice(first, first + 32)
        steps = values[..., part].abs().amax(-1, keepdim=True) / 127
        assert bool(((rounded - values)[..., part].abs() <= steps * 0.5001).all())


def test_gradients_pass_and_a_static_range_follows_in_training_alone() -> None:
    quantizer = ActivationQuantizer("static", decay=0.75)
    with pytest.raises(ModelError, match="not calibrated"):
        quantizer.eval()(torch.ones(3))
    quantizer.train()
    quantizer(torch.tensor([1.0, -2.0]))
    values = torch.tensor([4.0, 1.0], requires_grad=True)
    quantizer(values).sum().backward()
    assert torch.equal(values.grad, torch.ones(2))
    assert float(quantizer.range) == 0.75 * 2 + 0.25 * 4
    quantizer.eval()
    assert float(quantizer(torch.tensor([100.0])).max()) == pytest.approx(2.5, rel=1e-6)  # clipped to the range
    assert float(quantizer.range) == 2.5


def test_a_model_computes_as_before_once_the_block_is_left() -> None:
    task, batch = text_task(), examples().batch([0, 1])
    model = build_model(ModelSettings(preset="glm-0.1m"), task, seed=0).eval()

    def logits() -> np.ndarray:
        with torch.no_grad():
            return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.numpy()

    before = logits()
    with quantized_activations(model, "static") as quantizers:
        calibrate_ranges(model, quantizers, examples())
        rounded = logits()
        with pytest.raises(DataError, match="at least one public text"):
            calibrate_ranges(model, quantizers, examples().select([]))
    assert np.array_equal(logits(), before)
    assert not np.array_equal(rounded, before)
    # Every range is that of the inputs, so that each of the 13 layers adds a relative error near 1/254 of the greatest.
    assert np.linalg.norm(rounded - before) < 13 * np.linalg.norm(before) * 4 / 254
    assert not model.training


def test_a_range_that_is_far_off_costs_more_than_one_that_is_right() -> None:
    task = text_task()
    model = build_model(ModelSettings(preset="glm-0.1m"), task, seed=0)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)  # untrained logits are flat, and no error would show
    curve = measure_shift_curve(model, task, examples(), examples(), shifts=(-0.95, 0.0, 0.1))
    assert [shift for shift, _ in curve] == [-0.95, 0.0, 0.1]
    rises = dict(curve)
    assert abs(rises[-0.95]) > 5 * max(abs(rises[0.0]), abs(rises[0.1]))
