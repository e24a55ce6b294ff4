"""Any model that fedglm made, opened for use: a run's, a release of ``save_pretrained``, or a light release.

This file imports no torch: only what is not light needs it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal, NamedTuple

from fedglm.autoglm.errors import ModelError
from fedglm.inference.batching.settings import BatchingSettings, bound_runs
from fedglm.inference.inputs.model_inputs import open_inputs, open_task
from fedglm.inference.inputs.task import TASK_FILE, TaskDescription
from fedglm.inference.model import DEFAULT_CACHE_BYTES, LiteModel
from fedglm.inference.release.manifest import MANIFEST
from fedglm.run_folder.names import MODEL, SCENARIO

CONFIG_FILE: Final = "config.json"
"""The file that makes a folder a model of transformers."""

Format = Literal["light", "transformers"]


class ModelFolder(NamedTuple):
    """Where a model lies.

    Attributes:
        path: Folder of the model itself.
        format: What can read it: `inference` alone, or transformers.
        run: Folder of the run that made it, where it was found in one.
        task: What it is for.
    """

    path: Path
    format: Format
    run: Path | None
    task: TaskDescription


def find_model(path: str | Path) -> ModelFolder:
    """Find the model in a folder: of a run, a release of ``save_pretrained``, or a light release.

    Raises:
        ModelError: There is no such folder, or no model that fedglm made in it.
        InferenceError: Its ``task.json`` is damaged.
    """
    given = Path(path).expanduser()
    if not given.is_dir():
        raise ModelError(f"{given}: there is no such folder; a model is the folder of a run or of a release")
    run = given if (given / SCENARIO).is_file() else None
    folder = given / MODEL if run else given
    if run and not folder.is_dir():
        raise ModelError(f"{run}: the run has no model yet; let it finish first")
    is_light = (folder / MANIFEST).is_file()
    if not is_light and not (folder / CONFIG_FILE).is_file():
        raise ModelError(f"{folder}: holds no model ({CONFIG_FILE} or {MANIFEST} is missing)")
    if not (folder / TASK_FILE).is_file():
        raise ModelError(f"{folder}: holds no {TASK_FILE}; it is no model that fedglm released")
    return ModelFolder(folder, "light" if is_light else "transformers", run, open_task(folder))


def open_model(
    path: str | Path,
    *,
    keys: Iterable[str] = (),
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    batching: bool | BatchingSettings = False,
) -> LiteModel:
    """Open a model for use; one that is not light needs torch.

    Args:
        path: Folder of a run, of a release of ``save_pretrained``, or of a light release.
        keys: Public keys, of 64 digits each, of those whose signature on a light release is enough; without any,
            `LiteModel.info` says that it is not verified. Other models have no signature.
        cache_bytes: Bound of what is kept, in bytes; 0 keeps nothing.
        batching: Whether, or how, what several threads ask is batched; such a model is to be closed.

    Raises:
        ModelError, InferenceError: There is no model, it cannot be used or is not signed by one of `keys`, or what it
            needs is not installed.
    """
    found, keys = find_model(path), list(keys)
    if found.format == "light":
        return LiteModel.from_pretrained(found.path, keys=keys, cache_bytes=cache_bytes, batching=batching)
    if keys:
        raise ModelError(f"{found.path}: is no light release, and so has no signature to be checked")
    try:
        from fedglm.autoglm.models.release import load_release
        from fedglm.autoglm.models.session import TorchSession
    except ModuleNotFoundError as exc:
        remedy = "pip install 'fedglm[node]', or use a light release"
        raise ModelError(f"{found.path} needs {exc.name}, which is not installed: {remedy}") from exc
    config = json.loads((found.path / CONFIG_FILE).read_text(encoding="utf-8"))
    inputs = open_inputs(found.path, config)
    model, _ = load_release(found.path)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = {"parameters": parameters, "runtime": "torch", "folder": str(found.path)}
    return LiteModel(
        TorchSession(model), inputs, facts=facts, cache_bytes=cache_bytes, batching=bound_runs(batching, 1)
    )
