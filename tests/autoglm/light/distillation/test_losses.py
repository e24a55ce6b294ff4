import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_glms import random_examples

from fedglm.autoglm.light.distillation.losses import divergences


def logits(shape, seed, spread=2.0):
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(student, teacher, temperature):
    """T^2 KL of one position by its definition, in float64."""
    p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum() for z in (teacher, student))
    return temperature**2 * float((p * np.log(p / q)).sum())


@given(seed=st.integers(0, 2**32), temperature=st.floats(0.5, 20))
def test_a_classifiers_divergence_is_the_definition(seed, temperature):
    student, teacher = logits((5, 7), seed), logits((5, 7), seed + 1)
    found = divergences(student, teacher, {}, temperature=temperature)
    pairs = zip(student.double().numpy(), teacher.double().numpy(), strict=True)
    wanted = [reference(s, t, temperature) for s, t in pairs]
    assert np.allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_a_language_models_is_the_mean_over_its_predicted_tokens():
    batch = random_examples(6, seed=3).batch(range(6))
    student, teacher = (logits((*batch["input_ids"].shape, 24), seed) for seed in (1, 2))
    found = divergences(student, teacher, batch, temperature=3.0)
    for row, length in enumerate(batch["attention_mask"].sum(1)):
        each = [reference(student[row, i].double().numpy(), teacher[row, i].double().numpy(), 3.0) for i in
                range(length - 1)]  # fmt: skip
        assert float(found[row]) == pytest.approx(np.mean(each), rel=1e-4)
    padded = teacher.clone()
    padded[batch["attention_mask"] == 0] = 100.0
    assert torch.equal(divergences(student, padded, batch, temperature=3.0), found)


@given(seed=st.integers(0, 2**32))
def test_equal_logits_and_shifted_ones_diverge_by_nothing(seed):
    teacher = logits((4, 9), seed)
    assert torch.equal(divergences(teacher, teacher, {}, temperature=2.0), torch.zeros(4))
    assert divergences(teacher + 5, teacher, {}, temperature=2.0).abs().max() < 1e-4


def test_at_a_high_temperature_the_gradient_matches_logits():
    # Hinton et al., arXiv:1503.02531, equation 4: T^2 times the gradient tends to (z - v) / N for centered logits.
    student, teacher = logits((1, 10), 1), logits((1, 10), 2)
    student, teacher = ((z - z.mean()).double() for z in (student, teacher))
    student.requires_grad_()
    divergences(student, teacher, {}, temperature=1e3).sum().backward()
    assert torch.allclose(student.grad, (student.detach() - teacher) / 10, atol=2e-3)
    student.grad = None
    divergences(student, teacher, {}, temperature=1.0).sum().backward()
    assert not torch.allclose(student.grad, (student.detach() - teacher) / 10, atol=2e-2)
