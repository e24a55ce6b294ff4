"""What decides the bits of a training, as hashes: the model, the text, the code, the libraries, the processor."""

from __future__ import annotations

import hashlib
import json
import platform
from functools import cache
from importlib import metadata
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.tasks.task import Task
from fedglm.autoglm.tasks.text import TextTask
from fedglm.core.canonical_json import canonical_json
from fedglm.core.code_identity import code_sha256

_LIBRARIES: Final = ("torch", "transformers", "tokenizers", "numpy", "scipy", "safetensors", "onnx", "onnxruntime")

version = cache(metadata.version)  # each is read from a file, and every key holds them all


def hash_values(**values: Any) -> str:
    """Return the SHA-256 (hex) of named plain values."""
    return hashlib.sha256(canonical_json(values)).hexdigest()


def hash_model(model: PreTrainedModel, task: Task) -> str:
    """Return the SHA-256 (hex) of a model's configuration and parameters, and of its task and tokenizer."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)  # where it was loaded from
    tokenizer = getattr(task.tokenizer, "backend_tokenizer", None) if isinstance(task, TextTask) else None
    words = "" if tokenizer is None else tokenizer.to_str()
    kind = [type(model).__name__, model.config._attn_implementation]
    digest = hashlib.sha256(json.dumps([kind, config, task.to_json(), words]).encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        _add(digest, name, tensor)
    return digest.hexdigest()


def hash_examples(*parts: Examples) -> str:
    """Return the SHA-256 (hex) of sequences: tokens, lengths, labels and units."""
    digest = hashlib.sha256()
    for part in parts:
        for name in ("input_ids", "lengths", "labels", "units"):
            _add(digest, name, getattr(part, name))
    return digest.hexdigest()


def hash_machine() -> str:
    """Return the SHA-256 (hex) of what else decides bits: our code, the libraries, the processor, torch's threads."""
    return hash_values(
        code=code_sha256(),
        python=platform.python_version(),
        libraries={name: version(name) for name in _LIBRARIES},
        torch=torch.__config__.show(),
        threads=torch.__config__.parallel_info(),
        processor=_describe_processor(),
        devices=[torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
    )


@cache
def _describe_processor() -> dict[str, Any]:
    """Return the processor's name and features: libraries choose their loops, and so the order of sums, by them."""
    from fedglm.inference.device.processor import read_processor

    found = read_processor()
    return {"name": found.name, "architecture": found.architecture, "features": found.features}


def _add(digest: Any, name: str, tensor: torch.Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
