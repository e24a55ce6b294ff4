import numpy as np
import pytest
import torch
from tiny_federation import TASK, examples, tiny_model

from fedglm.autoglm.federation import load_federation
from fedglm.autoglm.models.build import build_model
from fedglm.autoglm.models.parameters import to_vector
from fedglm.autoglm.settings import DataSettings, LocalTrainingSettings, ModelSettings
from fedglm.autoglm.training import precision as precision_module
from fedglm.autoglm.training.local import TrainingError, round_seed, train_locally
from fedglm.autoglm.training.precision import (
    BF16_PAYS_FROM,
    ChosenPrecision,
    PrecisionError,
    choose_precision,
    torch_device,
)

CPU = torch.device("cpu")
GPU = torch.device("cuda")
FP32 = ChosenPrecision("fp32", "as asked for", CPU)


def train(model=None, *, precision=FP32, base=None, data=None, learning_rate=0.05, seed=1, steps=None, **settings):
    model = model or tiny_model()
    return train_locally(
        model,
        TASK.sequence_losses,
        examples() if data is None else data,
        to_vector(model) if base is None else base,
        LocalTrainingSettings(**({"local_steps": 5, "batch_size": 8} | settings)),
        precision,
        learning_rate=learning_rate,
        seed=seed,
        steps=steps,
    )


# --- precision


@pytest.mark.parametrize(
    ("has_bf16", "parameters", "chosen"),
    [(True, BF16_PAYS_FROM, "bf16"), (True, BF16_PAYS_FROM - 1, "fp32"), (False, BF16_PAYS_FROM, "fp32")],
)
def test_auto_on_a_cpu_goes_by_hardware_and_size(monkeypatch, has_bf16, parameters, chosen):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    settled = choose_precision("auto", parameters, CPU)
    assert (settled.name, settled.device) == (chosen, CPU)
    assert settled.reason


@pytest.mark.parametrize(("has_bf16", "chosen"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_a_gpu_prefers_bf16(monkeypatch, has_bf16, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)
    assert choose_precision("auto", 100, GPU).name == chosen


def test_what_a_device_cannot_do_is_named(monkeypatch):
    with pytest.raises(PrecisionError, match="fp16 needs a GPU: on a CPU choose auto, bf16 or fp32"):
        choose_precision("fp16", 100, CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PrecisionError, match="no GPU"):
        choose_precision("auto", 100, torch_device(LocalTrainingSettings(device="cuda").device))


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_named_precision_is_taken_as_it_is(name):
    assert choose_precision(name, 100, CPU) == ChosenPrecision(name, "as asked for", CPU)


def test_only_fp16_scales_losses():
    assert not precision_module.ChosenPrecision("bf16", "", CPU).scaler().is_enabled()
    assert not FP32.scaler().is_enabled()


def test_bf16_computes_in_bf16_over_float32_masters():
    seen = []
    model = tiny_model()
    model.head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    coarse = train(model, precision=ChosenPrecision("bf16", "", CPU))
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    exact = train()
    assert not np.array_equal(coarse.delta, exact.delta)
    # AdamW's first steps go by the sign of the gradient: where it is near zero, bf16 may turn it round.
    assert np.corrcoef(coarse.delta, exact.delta)[0, 1] > 0.98


# --- the update


def test_it_learns():
    early, late = train(steps=1), train(steps=60)
    assert (early.steps, late.steps) == (1, 60)
    assert late.loss < early.loss
    assert late.delta.dtype == np.float32
    assert late.delta.shape == to_vector(tiny_model()).shape


def test_same_seed_same_bits_whatever_the_global_random_state():
    torch.manual_seed(3)
    first = train(tiny_model(dropout=0.3))
    torch.manual_seed(4)
    np.random.seed(5)
    before = torch.random.get_rng_state()
    second = train(tiny_model(dropout=0.3))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.delta.tobytes() == second.delta.tobytes()
    assert first.loss == second.loss


def test_the_model_is_reset_to_the_base_so_what_it_held_before_does_not_matter():
    used = tiny_model()
    base = to_vector(used)
    train(used, seed=9)
    assert train(used, base=base).delta.tobytes() == train(base=base).delta.tobytes()


@pytest.mark.parametrize("other", [("seven", "a", 1), (7, "b", 1), (7, "a", 2)])
def test_another_seed_node_or_round_gives_another_order(other):
    seed, elsewhere = round_seed(7, "a", 1), round_seed(*other)
    assert seed != elsewhere
    assert 0 <= seed < 2**63
    assert seed == round_seed(7, "a", 1)
    assert train(seed=seed).delta.tobytes() != train(seed=elsewhere).delta.tobytes()


def test_every_example_is_seen_before_one_comes_again():
    class Watched(type(examples())):
        def batch(self, indices):
            seen.append(indices.tolist())
            return super().batch(indices)

    seen = []
    plain = examples(10)
    watched = Watched(input_ids=plain.input_ids, lengths=plain.lengths, labels=plain.labels, units=plain.units)
    train(data=watched, batch_size=4, local_steps=5)
    assert [len(batch) for batch in seen] == [4] * 5
    drawn = [index for batch in seen for index in batch]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]


def test_a_site_smaller_than_a_batch_trains_on_all_it_has():
    assert train(data=examples(3), batch_size=8).steps == 5


@pytest.mark.parametrize("micro", [1, 3, 8, 50])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_micro_batches_give_the_update_of_the_whole_batch(micro, optimizer):
    whole = train(optimizer=optimizer, local_steps=3)
    parts = train(optimizer=optimizer, local_steps=3, micro_batch_size=micro)
    np.testing.assert_allclose(parts.delta, whole.delta, atol=2e-6)
    assert parts.loss == pytest.approx(whole.loss, abs=1e-6)


def test_sgd_takes_the_step_of_its_formula():
    model = tiny_model()
    batch = examples().batch(torch.arange(24))
    TASK.sequence_losses(model, batch).mean().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).numpy()
    settings = {"optimizer": "sgd", "weight_decay": 0.0, "gradient_clip": 0.0, "batch_size": 24}
    result = train(steps=1, learning_rate=0.5, **settings)
    np.testing.assert_allclose(result.delta, -0.5 * gradient, atol=1e-6)


def test_any_loss_of_a_sequence_can_be_trained():
    model = tiny_model()
    base, bias = to_vector(model), model.head.bias.detach().clone().numpy()

    def towards_three(model, batch):
        return (model.head.bias - 3).square().sum().expand(len(batch["labels"]))

    settings = LocalTrainingSettings(optimizer="sgd", weight_decay=0, momentum=0, gradient_clip=0, batch_size=4)
    result = train_locally(model, towards_three, examples(), base, settings, FP32, learning_rate=0.5, seed=1, steps=1)
    np.testing.assert_allclose(result.delta[-2:], 3 - bias, atol=1e-6)
    assert not result.delta[:-2].any()


def test_a_warm_up_scales_the_first_steps_of_a_round():
    settings = {"optimizer": "sgd", "weight_decay": 0.0, "momentum": 0.0, "gradient_clip": 0.0, "batch_size": 24}
    whole, warmed = train(steps=1, **settings), train(steps=1, warmup_steps=3, **settings)
    np.testing.assert_allclose(warmed.delta, whole.delta / 4, atol=1e-6)


def test_clipping_bounds_the_gradient():
    settings = {"optimizer": "sgd", "weight_decay": 0.0}
    clipped = train(steps=1, learning_rate=1.0, gradient_clip=1e-3, **settings)
    assert np.linalg.norm(clipped.delta) == pytest.approx(1e-3, rel=1e-2)


def test_a_learning_rate_of_zero_changes_nothing():
    assert not train(learning_rate=0.0).delta.any()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_training_that_blows_up_is_an_error(optimizer):
    with pytest.raises(TrainingError, match=r"lower training\.learning_rate or choose precision fp32"):
        train(optimizer=optimizer, learning_rate=1e30, gradient_clip=0, local_steps=8)


def test_a_last_step_that_blows_up_is_an_error_too():
    """The loss is computed before the step: only the weights show it."""
    with pytest.raises(TrainingError, match="a trained weight is not finite"):
        train(optimizer="sgd", learning_rate=1e38, gradient_clip=0, steps=1, weight_decay=10)


def test_lora_trains_and_federates_the_adapters_alone():
    data = load_federation(DataSettings(source="breast-cancer"), nodes=2, seed=7)
    model = build_model(ModelSettings(adapter="lora", lora_rank=2), data.task, seed=7)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    settings, losses = LocalTrainingSettings(local_steps=2, batch_size=4), data.task.sequence_losses
    base = to_vector(model)
    assert len(base) < sum(weight.numel() for weight in frozen.values()) / 5
    results = [
        train_locally(model, losses, data.sites[0].train, base, settings, FP32, learning_rate=0.01, seed=1)
        for _ in range(2)
    ]
    assert results[0].delta.any()
    assert results[0].delta.tobytes() == results[1].delta.tobytes()
    for name, parameter in model.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name])
