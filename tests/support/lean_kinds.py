"""Every kind of run, in a process whose libraries are imported as a worker's: `python lean_kinds.py FOLDER [KIND ...]`.

Each kind has a process of its own, in which it fails with a traceback where it needs what the lean imports leave out.
Prints whether each has worked, as JSON.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from fedglm.client.supernode.lean_imports import import_lean

import_lean()  # as `worker_process` does, before anything else

import numpy as np  # noqa: E402
import torch  # noqa: E402
from saved_models import tasks  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GlmConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
)

import fedglm.client.site.site_node  # noqa: E402  as a worker imports them
import fedglm.client.supernode.worker  # noqa: E402, F401
from fedglm.autoglm.data.examples import Examples  # noqa: E402
from fedglm.autoglm.data.records import Records  # noqa: E402
from fedglm.autoglm.data.tokenizer import make_byte_tokenizer  # noqa: E402
from fedglm.autoglm.models.build import build_model, outline_model  # noqa: E402
from fedglm.autoglm.models.presets import PRESETS  # noqa: E402
from fedglm.autoglm.models.release import load_release, save_release  # noqa: E402
from fedglm.autoglm.settings import LocalTrainingSettings, ModelSettings, Precision  # noqa: E402
from fedglm.autoglm.tasks.task import Task  # noqa: E402
from fedglm.autoglm.training.local import train_locally  # noqa: E402
from fedglm.autoglm.training.precision import PrecisionError, choose_precision, torch_device  # noqa: E402
from fedglm.client.private_training import evaluate_privately, train_privately  # noqa: E402
from fedglm.compression.codec import codec_names, decode, make_codec  # noqa: E402
from fedglm.compression.settings import DownlinkSettings  # noqa: E402
from fedglm.privacy.dp.clippers import ClippingMode  # noqa: E402
from fedglm.privacy.dp.mechanism import Mechanism, make_metrics_mechanism  # noqa: E402
from fedglm.protocol.federated_model import FederatedModel, make_layout  # noqa: E402

MECHANISM = Mechanism(
    sampling_rate=0.9, steps=1, clipping_norm=1.0, noise_multiplier=1.0, unit="record", records_per_unit=1
)
ADAPTERS = ("none", "lora")
SMALL = "glm-0.1m"


def records(task: Task) -> Examples:
    """A few examples of a task."""
    labels = [task.classes[i % 3] for i in range(6)] if task.reads_labels else []
    rows = {"labels": labels, "units": [str(i) for i in range(6)]}
    table = np.linspace(0, 40, 12).reshape(6, 2)
    made = Records(values=table, **rows) if task.kind == "tabular-classification" else None
    return task.examples(made or Records(texts=[f"a text with the number {i}" for i in range(6)], **rows))[0]


def federate(settings: ModelSettings, task: Task) -> FederatedModel:
    """Outline and build a model as a node does."""
    model = FederatedModel(build_model(settings, task, seed=1), task, DownlinkSettings())
    assert make_layout(outline_model(settings, task)).sha256 == model.layout.sha256
    return model


def train(model: FederatedModel, precision: str, optimizer: str = "adamw") -> np.ndarray | None:
    """Take a step as a node does; None where this machine has no such precision."""
    training = LocalTrainingSettings(
        local_steps=1, batch_size=4, micro_batch_size=3, precision=precision, optimizer=optimizer, device="cpu"
    )
    try:
        chosen = choose_precision(training.precision, model.layout.size, torch_device(training.device))
    except PrecisionError:
        assert precision == "fp16"  # which no CPU has
        return None
    losses, examples = model.task.sequence_losses, records(model.task)
    made = train_locally(model.module, losses, examples, model.initial, training, chosen, learning_rate=1e-3, seed=1)
    assert np.abs(made.delta).max() > 0
    model.task.evaluate(model.module, examples)
    return made.delta


def train_with_noise(model: FederatedModel, mode: str) -> None:
    """Take a noised step in a clipping mode, and measure with noise."""
    precision = choose_precision("fp32", model.layout.size, torch_device("cpu"), private=True)
    examples = records(model.task)
    made = train_privately(
        model.module,
        model.task,
        examples,
        model.initial,
        LocalTrainingSettings(),
        precision,
        MECHANISM,
        learning_rate=1e-3,
        declared_units=6,
        mode=mode,
    )
    assert np.isfinite(made.delta).all()
    evaluate_privately(model.module, model.task, examples, make_metrics_mechanism(MECHANISM, 1.0))


def release(model: FederatedModel, folder: Path) -> None:
    """Save the model, with adapters merged, and load it again."""
    save_release(model.module, model.task, folder)
    loaded, task = load_release(folder)
    task.evaluate(loaded, records(task))


def code(model: FederatedModel, delta: np.ndarray) -> None:
    """Code an update by every codec."""
    for name in codec_names():
        assert decode(make_codec(name, layout=model.layout).encode(delta), size=delta.size).norm() > 0


COMMON = {
    "vocab_size": 256, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1,
    "max_position_embeddings": 128, "pad_token_id": 255, "bos_token_id": 254, "eos_token_id": 253,
}  # fmt: skip
FOLDERS: dict[str, tuple[PreTrainedConfig, bool]] = {
    "bert": (BertConfig(**COMMON), False),
    "glm": (GlmConfig(**COMMON, num_key_value_heads=2, head_dim=8), True),
    "gpt2": (GPT2Config(vocab_size=256, n_embd=16, n_layer=1, n_head=2, n_positions=128), False),
    "llama": (LlamaConfig(**COMMON), True),
}
"""Models of transformers, and whether all of their layers can be trained with noise: learnt positions cannot."""


def run_preset(preset: str, kind: str, adapter: str, folder: Path) -> None:
    """Train, save and load a preset's model."""
    model = federate(ModelSettings(preset=preset, adapter=adapter), tasks()[kind])
    delta = train(model, "auto")
    if preset == SMALL:
        code(model, delta)
    release(model, folder)


def run_precisions(preset: str, adapter: str) -> None:
    """Train in every precision, with the other optimizer."""
    for precision in get_args(Precision):
        train(federate(ModelSettings(preset=preset, adapter=adapter), tasks()["table"]), precision, "sgd")


def run_noise(preset: str, kind: str, adapter: str, mode: str) -> None:
    """Train with noise in a clipping mode."""
    train_with_noise(federate(ModelSettings(preset=preset, adapter=adapter), tasks()[kind]), mode)


def run_folder(name: str, kind: str, adapter: str, folder: Path) -> None:
    """Make a folder of transformers, and do with it what a run from it does."""
    config, noised = FOLDERS[name]
    auto = AutoModelForSequenceClassification if name == "bert" else AutoModelForCausalLM
    auto.from_config(config).save_pretrained(folder / "base")
    make_byte_tokenizer(append_end=True).save_pretrained(folder / "base")
    plain = tasks()[kind]
    labels = {"labels": plain.classes} if plain.classes else {}
    task = type(plain).for_texts(str(folder / "base"), length=32, **labels)
    model = federate(ModelSettings(path=str(folder / "base"), adapter=adapter), task)
    train(model, "fp32")
    if noised or adapter == "lora":
        train_with_noise(model, "auto")
    release(model, folder / "release")


def list_kinds(folder: Path) -> dict[str, Callable[[], None]]:
    """Every kind of run, by name."""
    kinds: dict[str, Callable[[], None]] = {}
    for adapter in ADAPTERS:
        for kind in tasks():
            for preset in PRESETS:
                kinds[f"{preset} {kind} {adapter}"] = partial(
                    run_preset, preset, kind, adapter, folder / str(len(kinds))
                )
            for mode in get_args(ClippingMode):
                kinds[f"noise {mode} {kind} {adapter}"] = partial(run_noise, SMALL, kind, adapter, mode)
            for name in FOLDERS:
                if kind != "table" and (kind == "texts" or name != "bert"):
                    kinds[f"folder {name} {kind} {adapter}"] = partial(
                        run_folder, name, kind, adapter, folder / str(len(kinds))
                    )
        kinds[f"precisions {adapter}"] = partial(run_precisions, SMALL, adapter)
    return kinds


def run_alone(work: Callable[[], None]) -> bool:
    """Do the work in a process of its own: what one kind of run imports may not help another."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def run_kinds(folder: str, names: Sequence[str]) -> None:
    """Run the named kinds, or all, and print which worked."""
    torch.set_num_threads(1)
    known = list_kinds(Path(folder))
    print(json.dumps({name: run_alone(known[name]) for name in names or known}), flush=True)


if __name__ == "__main__":
    run_kinds(sys.argv[1], sys.argv[2:])
