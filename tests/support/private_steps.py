"""Private training of a tiny model, step by step: its mechanism, its data, and randomness that repeats itself."""

import hashlib
from dataclasses import replace

import torch
from tiny_federation import TASK, examples, tiny_model

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.models.parameters import to_vector
from fedglm.autoglm.settings import LocalTrainingSettings
from fedglm.autoglm.training.precision import ChosenPrecision
from fedglm.client.private_training import train_privately
from fedglm.privacy.dp.mechanism import Mechanism

CPU = torch.device("cpu")
FP32 = ChosenPrecision("fp32", "as asked for", CPU)
PLAIN_SGD = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
MECHANISM = Mechanism(
    sampling_rate=0.4, steps=3, clipping_norm=0.2, noise_multiplier=0.5, unit="patient_id", records_per_unit=2
)
EVERYBODY = replace(MECHANISM, sampling_rate=1.0, steps=1, noise_multiplier=1e-12, records_per_unit=3)
NOBODY = replace(MECHANISM, sampling_rate=1e-12)
"""As good as nobody is ever drawn."""


def units_of_three(count=24):
    """Eight units of three records each, not in order."""
    plain = examples(count)
    units = torch.arange(count) % (count // 3) + 100
    return Examples(input_ids=plain.input_ids, lengths=plain.lengths, labels=plain.labels, units=units)


def tape(number=0):
    """An entropy that repeats itself: what training drew can be drawn again."""
    calls = iter(range(10**9))
    return lambda size: hashlib.shake_256(f"{number}/{next(calls)}".encode()).digest(size)


def train(mechanism=MECHANISM, data=None, model=None, *, task=TASK, mode="auto", declared=10, rate=1.0, **options):
    noise, precision = options.pop("noise", None), options.pop("precision", FP32)
    model = model or tiny_model()
    base = options.pop("base", None)
    return train_privately(
        model,
        task,
        units_of_three() if data is None else data,
        to_vector(model) if base is None else base,
        LocalTrainingSettings(**(PLAIN_SGD | options)),
        precision,
        mechanism,
        learning_rate=rate,
        declared_units=declared,
        mode=mode,
        noise=noise,
    )
