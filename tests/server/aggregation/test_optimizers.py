import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam
from flwr.supercore.task_identity import TaskIdentity
from pydantic import ValidationError

from fedglm.server.aggregation.optimizers import make_server_optimizer
from fedglm.server.settings import FederationSettings, ServerOptimizerSettings

MEANS = [np.random.default_rng(i).normal(0, 0.1, 50).astype(np.float32) for i in range(8)]


def optimizer(name, **settings):
    return make_server_optimizer(ServerOptimizerSettings(server_optimizer=name, **settings))


def steps(made, first=1, means=MEANS):
    return [made.step(mean, number) for number, mean in enumerate(means, start=first)]


def test_plain_is_the_scaled_mean():
    assert [s.tobytes() for s in steps(optimizer("plain"))] == [m.tobytes() for m in MEANS]
    halved = steps(optimizer("plain", server_learning_rate=0.5))
    assert all(np.array_equal(s, m / 2) for s, m in zip(halved, MEANS, strict=True))


def test_nesterov_is_the_naive_loop():
    rate, momentum = 0.7, 0.6
    velocity = [0.0] * 50
    for step, mean in zip(
        steps(optimizer("nesterov", server_learning_rate=rate, server_momentum=momentum)), MEANS, strict=True
    ):
        velocity = [momentum * v + float(g) for v, g in zip(velocity, mean, strict=True)]
        expected = [rate * (float(g) + momentum * v) for v, g in zip(velocity, mean, strict=True)]
        np.testing.assert_allclose(step, expected, rtol=1e-5, atol=1e-7)


def test_nesterov_is_the_one_of_torch():
    import torch

    weight = torch.zeros(50, requires_grad=True)
    reference = torch.optim.SGD([weight], lr=0.7, momentum=0.6, nesterov=True)
    model = np.zeros(50)
    for step, mean in zip(steps(optimizer("nesterov", server_learning_rate=0.7)), MEANS, strict=True):
        weight.grad = -torch.from_numpy(mean)
        reference.step()
        model += step
        np.testing.assert_allclose(model, weight.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_nesterov_without_momentum_is_plain():
    for step, mean in zip(
        steps(optimizer("nesterov", server_learning_rate=1.0, server_momentum=0.0)), MEANS, strict=True
    ):
        np.testing.assert_array_equal(step, mean)


def test_adam_is_the_formula_of_flowers_fedadam():
    """Reddi et al., arXiv 2003.00295, algorithm 2, with the bias correction that Flower adds to the rate."""
    rate, beta_1, beta_2, tau = 0.02, 0.9, 0.99, 1e-3
    m, v = np.zeros(50), np.zeros(50)
    for number, (step, mean) in enumerate(
        zip(steps(optimizer("adam", server_learning_rate=rate)), MEANS, strict=True), start=1
    ):
        m = beta_1 * m + (1 - beta_1) * mean
        v = beta_2 * v + (1 - beta_2) * mean.astype(np.float64) ** 2
        corrected = rate * math.sqrt(1 - beta_2 ** (number + 1)) / (1 - beta_1 ** (number + 1))
        np.testing.assert_allclose(step, corrected * m / (np.sqrt(v) + tau), rtol=1e-4, atol=1e-8)


def flower_steps(rate, means):
    """The steps of Flower's strategy from zero, with each mean as the one reply of a round."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # as Flower does before a ServerApp
    strategy, taken = FedAdam(eta=rate), []
    for number, mean in enumerate(means, start=1):
        strategy.current_arrays = {"model": np.zeros_like(mean)}
        arrays, metrics = ArrayRecord({"model": Array(mean)}), MetricRecord({strategy.weighted_by_key: 1.0})
        reply = Message(RecordDict({"arrays": arrays, "metrics": metrics}), dst_node_id=0, message_type="train")
        model, _ = strategy.aggregate_train(number, [reply])
        taken.append(model["model"].numpy())
    return taken


@pytest.mark.parametrize("scale", [1e-6, 0.1, 100.0])
def test_adam_steps_as_flowers_strategy_does(scale):
    means = [np.random.default_rng(i).normal(0, scale, 5000).astype(np.float32) for i in range(8)]
    means[3][::2] = 0.0
    ours = steps(optimizer("adam", server_learning_rate=0.02), means=means)
    for step, flower in zip(ours, flower_steps(0.02, means), strict=True):
        np.testing.assert_array_max_ulp(step, flower.astype(np.float32), maxulp=1)


@pytest.mark.parametrize("name", ["plain", "nesterov", "adam"])
@pytest.mark.parametrize("stop", [0, 1, 5])
def test_state_and_restore_in_the_middle_give_the_same_bits(name, stop):
    whole = steps(optimizer(name))
    before = optimizer(name)
    early = steps(before, means=MEANS[:stop])
    state = before.state()
    assert all(isinstance(array, np.ndarray) for array in state.values())
    after = optimizer(name)
    after.restore({key: array.copy() for key, array in state.items()})
    late = steps(after, first=stop + 1, means=MEANS[stop:])
    assert [s.tobytes() for s in early + late] == [s.tobytes() for s in whole]


@pytest.mark.parametrize("name", ["plain", "nesterov", "adam"])
def test_steps_are_float32_and_leave_the_mean_alone(name):
    mean = MEANS[0].copy()
    step = optimizer(name).step(mean, 1)
    assert (step.dtype, step.shape) == (np.float32, mean.shape)
    assert np.array_equal(mean, MEANS[0])


# --- schedules and settings


def rates(rounds, **settings):
    made = ServerOptimizerSettings(**settings)
    return [made.rate_at(number, rounds) for number in range(1, rounds + 1)]


def test_a_constant_rate():
    assert rates(5) == [1.0] * 5


def test_a_cosine_falls_from_one_to_the_final_rate():
    fall = rates(11, schedule="cosine", final_rate=0.2)
    assert fall[0] == 1.0
    assert fall[5] == pytest.approx(0.6)
    assert fall[-1] == pytest.approx(0.2)
    assert fall == sorted(fall, reverse=True)
    assert rates(1, schedule="cosine") == [1.0]


def test_a_warm_up_rises_linearly_and_never_starts_at_nothing():
    assert rates(5, warmup_rounds=3) == [0.25, 0.5, 0.75, 1.0, 1.0]
    both = rates(5, warmup_rounds=1, schedule="cosine", final_rate=0.0)
    assert both[0] == 0.5
    assert both[-1] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("fraction", "nodes", "sampled"), [(1.0, 7, 7), (0.5, 4, 2), (0.3, 10, 3), (0.01, 10, 1), (0.5, 5, 2)]
)
def test_cohorts(fraction, nodes, sampled):
    assert FederationSettings(fraction=fraction).cohort_size(nodes) == sampled


@pytest.mark.parametrize(
    ("quorum", "sampled", "least"), [(0.5, 4, 2), (0.5, 5, 3), (0.0, 5, 1), (1.0, 5, 5), (0.07, 100, 7)]
)
def test_quorums(quorum, sampled, least):
    assert FederationSettings(quorum=quorum).min_accepted(sampled) == least


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (FederationSettings, {"fraction": 0}),
        (FederationSettings, {"rounds": 0}),
        (FederationSettings, {"quorum": 1.1}),
        (FederationSettings, {"weighting": "secret"}),
        (FederationSettings, {"round_timeout": 5}),
        (FederationSettings, {"norm_limit": float("nan")}),
        (ServerOptimizerSettings, {"server_momentum": 1.0}),
        (ServerOptimizerSettings, {"server_optimizer": "sgd"}),
        (ServerOptimizerSettings, {"server_learning_rate": float("nan")}),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(kind, wrong):
    with pytest.raises(ValidationError):
        kind(**wrong)
