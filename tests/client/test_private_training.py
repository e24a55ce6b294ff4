"""DP-SGD at the node: each promise is one check, and each seeded fault must fail the check that stands for it."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from clipping_reference import glm, remains
from private_steps import CPU, EVERYBODY, MECHANISM, NOBODY, tape, train, units_of_three
from seeded_faults import (
    all_records_of_a_unit,
    batch_mean_loss,
    clip_each_record,
    divided_by_the_sample,
    half_noise,
    nan_let_through,
    no_clip,
    no_noise_on_an_empty_sample,
    noise_every_micro_batch,
    noise_from_a_seed,
    shuffled_batches,
)
from tiny_federation import TASK, examples, tiny_model

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.models.parameters import federated_parameters, to_vector
from fedglm.autoglm.training.local import TrainingError
from fedglm.autoglm.training.precision import ChosenPrecision
from fedglm.client.private_training import evaluate_privately
from fedglm.privacy.dp.dp_sgd import make_micro_batches
from fedglm.privacy.dp.mechanism import make_metrics_mechanism
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.errors import PrivacyError


def gradient(model, data, record):
    loss = TASK.sequence_losses(model, data.batch([record])).sum()
    parts = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([part.flatten() for part in parts]).double()


def contribution(model, data, records, norm):
    mean = sum(gradient(model, data, record) for record in records) / len(records)
    return mean * min(1.0, norm / float(mean.norm()))


# --- the promises. Each takes the mode; the seeded faults below run them too.


def check_every_number(mode):
    """The update is that of the textbook, number by number: sampled units, at most two records, mean, clip, noise."""
    data, model, noise = units_of_three(), tiny_model(), GaussianNoise(tape())
    numbers = data.units.numpy()
    base = to_vector(model)
    for _ in range(MECHANISM.steps):
        total = torch.zeros(len(base), dtype=torch.float64)
        for unit in np.flatnonzero(noise.uniform(8) < MECHANISM.sampling_rate):
            records = np.flatnonzero(numbers == 100 + unit)[noise.choice(3, 2)]
            total += contribution(model, data, records, MECHANISM.clipping_norm)
        total += torch.from_numpy(noise.normal(0.5 * 0.2, len(base)))
        step = total / (0.4 * 10)
        start = 0
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= step[start : start + parameter.numel()].view_as(parameter).float()
                start += parameter.numel()
    result = train(noise=GaussianNoise(tape()), mode=mode)
    np.testing.assert_allclose(result.delta, to_vector(model) - base, atol=2e-6)


def check_one_unit_adds_what_it_contributes_alone(mode):
    """Sensitivity: with a unit more, the sum differs by that unit's clipped gradient, of norm C at most."""
    whole, model, norm = units_of_three(), tiny_model(), 0.05
    without = whole.select(torch.nonzero(whole.units != 103).flatten())
    mechanism = replace(EVERYBODY, clipping_norm=norm)
    sums = [-train(mechanism, data, mode=mode, declared=1).delta.astype(float) for data in (whole, without)]
    difference = sums[0] - sums[1]
    assert np.linalg.norm(difference) <= norm * (1 + 1e-4)  # the weights hold the sums to 1e-8
    alone = contribution(model, whole, torch.nonzero(whole.units == 103).flatten().tolist(), norm)
    np.testing.assert_allclose(difference, alone, atol=1e-6)
    # Below the clipping norm too: a loss that is shared out over the batch shows there.
    mechanism = replace(EVERYBODY, clipping_norm=100.0)
    sums = [-train(mechanism, data, mode=mode, declared=1).delta.astype(float) for data in (whole, without)]
    alone = contribution(model, whole, torch.nonzero(whole.units == 103).flatten().tolist(), 100.0)
    np.testing.assert_allclose(sums[0] - sums[1], alone, atol=2e-6)


def check_noise_has_its_scale_once_a_step(mode):
    """Whatever the number of micro-batches."""
    mechanism = replace(EVERYBODY, noise_multiplier=1e5)
    # Of 28 x 74 numbers the deviation's own is 1.6 %: the limit is five of them, and half the noise thirty.
    drawn = [train(mechanism, mode=mode, declared=1, micro_batch_size=4).delta for _ in range(28)]
    assert np.std(drawn) == pytest.approx(mechanism.noise_std, rel=0.08)


def check_seeds_decide_nothing(mode):
    """Two nodes with one seed, or one node twice, must not draw the same noise."""
    results = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        results.append(train(NOBODY, mode=mode).delta)
    assert not np.isclose(results[0], results[1]).any()


def check_sizes_of_samples_vary_as_poisson_samples_do(mode):
    class Watched(Examples):
        def batch(self, indices):
            sizes.append(len(indices))
            return super().batch(indices)

    sizes, plain = [], examples(24)
    data = Watched(input_ids=plain.input_ids, lengths=plain.lengths, labels=plain.labels, units=plain.units)
    train(replace(MECHANISM, steps=150), data, mode=mode, rate=1e-6)
    sizes += [0] * (150 - len(sizes))
    # Binomial of 24 and 0.4: mean 9.6, deviation 2.4. The mean's own is 0.2, the deviation's 0.14.
    assert np.mean(sizes) == pytest.approx(9.6, abs=1.0)
    assert np.std(sizes) == pytest.approx(2.4, abs=0.7)


def check_an_empty_sample_is_a_step_with_noise(mode):
    mechanism = replace(NOBODY, steps=25)
    results = [train(mechanism, mode=mode, declared=10**12) for _ in range(20)]
    assert {result.steps for result in results} == {25}
    scale = mechanism.noise_std * 25**0.5
    assert np.std([result.delta for result in results]) == pytest.approx(scale, rel=0.1)


class Nan(type(TASK)):
    """A task whose loss is not a number for records that begin with token 3."""

    def sequence_losses(self, model, batch):
        losses = super().sequence_losses(model, batch)
        return losses * torch.where(batch["input_ids"][:, 0] == 3, float("nan"), 1.0)


def check_a_record_that_is_not_finite_removes_its_unit_alone(mode):
    task = Nan(length=6, vocab_size=16, pad_id=0, bos_id=1, eos_id=2, labels=TASK.labels)
    data = units_of_three()
    data.input_ids[:, 0].clamp_(min=4)
    without = data.select(torch.nonzero(data.units != 104).flatten())
    data.input_ids[int(torch.nonzero(data.units == 104)[1]), 0] = 3
    results = [train(EVERYBODY, some, task=task, mode=mode).delta for some in (data, without)]
    assert np.abs(results[1]).max() > 0
    np.testing.assert_allclose(results[0], results[1], atol=1e-7)


CHECKS = [
    check_every_number,
    check_one_unit_adds_what_it_contributes_alone,
    check_noise_has_its_scale_once_a_step,
    check_seeds_decide_nothing,
    check_sizes_of_samples_vary_as_poisson_samples_do,
    check_an_empty_sample_is_a_step_with_noise,
    check_a_record_that_is_not_finite_removes_its_unit_alone,
]


IN_ONE_MODE = (check_noise_has_its_scale_once_a_step, check_an_empty_sample_is_a_step_with_noise)
"""Dear ones, of noise, which comes after the clipping and is the same code in both modes."""


@pytest.mark.parametrize(
    ("check", "mode"),
    [
        pytest.param(check, mode, marks=[pytest.mark.slow] if mode == "hooks" and check in IN_ONE_MODE else [])
        for check in CHECKS
        for mode in ("ghost", "hooks")
    ],
)
def test_the_promise_holds(check, mode):
    check(mode)


# --- seeded faults


FAULTS = [
    (no_clip, check_one_unit_adds_what_it_contributes_alone),
    (nan_let_through, check_a_record_that_is_not_finite_removes_its_unit_alone),
    (half_noise, check_noise_has_its_scale_once_a_step),
    (noise_from_a_seed, check_seeds_decide_nothing),
    (noise_every_micro_batch, check_noise_has_its_scale_once_a_step),
    (no_noise_on_an_empty_sample, check_an_empty_sample_is_a_step_with_noise),
    (batch_mean_loss, check_one_unit_adds_what_it_contributes_alone),
    (shuffled_batches, check_sizes_of_samples_vary_as_poisson_samples_do),
    (clip_each_record, check_one_unit_adds_what_it_contributes_alone),
    (all_records_of_a_unit, check_every_number),
    (divided_by_the_sample, check_every_number),
]
IN_ANY_MODE = (half_noise, noise_every_micro_batch, no_noise_on_an_empty_sample, shuffled_batches)
"""Dear ones, put in where the mode makes no difference."""


@pytest.mark.parametrize(
    ("mode", "fault", "check"),
    [
        pytest.param(mode, *case, marks=[pytest.mark.slow] if mode == "hooks" and case[0] in IN_ANY_MODE else [])
        for mode in ("ghost", "hooks")
        for case in FAULTS
    ],
)
def test_a_seeded_fault_is_caught(monkeypatch, fault, check, mode):
    fault(monkeypatch)
    with pytest.raises((AssertionError, TrainingError)):
        check(mode)


# --- the rest


@pytest.mark.parametrize("micro", [1, 3, 5, 100])
@pytest.mark.parametrize("mode", ["ghost", "hooks"])
def test_micro_batches_never_part_a_unit_and_change_nothing(micro, mode):
    whole = train(noise=GaussianNoise(tape()), mode=mode)
    parts = train(noise=GaussianNoise(tape()), mode=mode, micro_batch_size=micro)
    np.testing.assert_allclose(parts.delta, whole.delta, atol=1e-6)


def test_micro_batches_hold_whole_units():
    drawn = [np.array([4, 9]), np.array([1]), np.array([0, 2, 3, 7]), np.array([5])]
    batches = [(indices.tolist(), owners.tolist()) for indices, owners in make_micro_batches(drawn, 3)]
    assert batches == [([4, 9, 1], [0, 0, 1]), ([0, 2, 3, 7], [0, 0, 0, 0]), ([5], [0])]
    assert [len(owners) for _, owners in make_micro_batches([np.arange(2)] * 3, 3)] == [2, 2, 2]
    assert list(make_micro_batches([], 3)) == []
    assert len(list(make_micro_batches(drawn, None))) == 1


def test_the_two_modes_agree():
    ghost, hooks = (train(noise=GaussianNoise(tape()), mode=mode) for mode in ("ghost", "hooks"))
    np.testing.assert_allclose(ghost.delta, hooks.delta, atol=1e-6)


def test_the_mechanism_decides_the_steps_and_the_settings_do_not():
    plain = train(noise=GaussianNoise(tape()))
    other = train(noise=GaussianNoise(tape()), local_steps=50, batch_size=1, gradient_clip=1e-9)
    assert other.steps == MECHANISM.steps
    assert other.delta.tobytes() == plain.delta.tobytes()


def test_no_loss_is_reported():
    assert np.isnan(train().loss)


def test_a_warm_up_scales_the_first_steps():
    once = replace(MECHANISM, steps=1)
    whole, warmed = (train(once, noise=GaussianNoise(tape()), warmup_steps=warm) for warm in (0, 3))
    np.testing.assert_allclose(warmed.delta, whole.delta / 4, atol=1e-6)


def test_adamw_follows_the_noised_gradient():
    once = replace(MECHANISM, steps=1)
    gradient_step = train(once, noise=GaussianNoise(tape())).delta
    adamw = train(once, noise=GaussianNoise(tape()), optimizer="adamw", rate=0.01).delta
    np.testing.assert_allclose(adamw, 0.01 * np.sign(gradient_step), atol=1e-5)  # AdamW's first step is of that size


def test_dropout_is_not_seeded_by_the_experiment_and_the_global_generator_is_left_alone():
    deltas = []
    for _ in range(2):
        torch.manual_seed(0)
        before = torch.random.get_rng_state()
        deltas.append(train(EVERYBODY, model=tiny_model(dropout=0.5), noise=GaussianNoise(tape())).delta)
        assert torch.equal(torch.random.get_rng_state(), before)
    assert not np.array_equal(*deltas)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("fp32", "hooks"),
        ("bf16", "ghost"),
        pytest.param("fp32", "ghost", marks=pytest.mark.slow),
        pytest.param("bf16", "hooks", marks=pytest.mark.slow),
    ],
)
def test_lora_trains_its_adapters_alone_and_the_model_stays_as_it_was(mode, name):
    model, task = glm("classifier", "lora", vocabulary=16)
    before = remains(model)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    precision = ChosenPrecision(name, "as asked for", CPU)
    for _ in range(2):
        result = train(model=model, task=task, mode=mode, precision=precision, rate=0.01)
        assert result.delta.shape == (sum(p.numel() for _, p in federated_parameters(model)),)
        assert np.mean(result.delta != 0) > 0.99  # now and then float32 swallows what is added to a weight
        assert remains(model) == before
    for name, parameter in model.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name])


def test_a_forward_pass_that_fails_leaves_the_model_as_it_was():
    class Broken(type(TASK)):
        def sequence_losses(self, model, batch):
            super().sequence_losses(model, batch)
            raise ZeroDivisionError

    task = Broken(length=6, vocab_size=16, pad_id=0, bos_id=1, eos_id=2, labels=TASK.labels)
    for mode in ("ghost", "hooks"):
        model = tiny_model()
        before = remains(model)
        with pytest.raises(ZeroDivisionError):
            train(EVERYBODY, model=model, task=task, mode=mode)
        assert remains(model) == before
        assert train(model=model, mode=mode).steps == MECHANISM.steps


def test_fp16_is_refused():
    with pytest.raises(PrivacyError, match="fp16 needs loss scaling"):
        train(precision=ChosenPrecision("fp16", "the GPU has no bf16", torch.device("cuda")))


def test_coarse_masters_are_refused():
    model = tiny_model().to(torch.bfloat16)
    with pytest.raises(PrivacyError, match="must be float32"):
        train(model=model, base=to_vector(tiny_model()))


def test_a_site_must_declare_units():
    with pytest.raises(PrivacyError, match="declare at least 1 unit"):
        train(declared=0)


def test_a_site_without_records_sends_noise_and_measures_of_nobody():
    """Whether it has any is as private as what they are."""
    assert np.count_nonzero(train(data=examples(0)).delta) > 0
    measures = evaluate_privately(tiny_model(), TASK, examples(0), make_metrics_mechanism(MECHANISM, 1.0))
    assert measures.count >= 1


def test_weights_that_blow_up_are_an_error():
    with pytest.raises(TrainingError, match="not finite"):
        train(replace(MECHANISM, noise_multiplier=1e20), rate=1e30)
