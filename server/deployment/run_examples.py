"""Records of a deployed run's server in its folder: token sequences, classes, and the settings of the model.

The server's process reads them instead of their original file, which may change or be removed during the run. With them
the process needs torch; without them it does not import it.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fedglm.core.files import write_atomically
from fedglm.server.deployment.run_file import read_verified
from fedglm.server.errors import ProjectError

if TYPE_CHECKING:
    import torch

    from fedglm.autoglm.data.examples import Examples
    from fedglm.autoglm.settings import DataSettings, ModelSettings
    from fedglm.autoglm.tasks.task import Task

_METADATA_KEY = "fedglm"


class StoredExamples(NamedTuple):
    """Records, and what evaluates a model on them.

    Attributes:
        model: The run's model, with its initial weights.
        task: Task of the run.
        examples: The records.
        seed: Seed of the model's initialization.
    """

    model: "torch.nn.Module"
    task: "Task"
    examples: "Examples"
    seed: int


def save_examples(path: Path, examples: "Examples", *, model: "ModelSettings", data: "DataSettings", seed: int) -> str:
    """Write records, and the settings of the run's model.

    Args:
        path: File to write.
        examples: The records.
        model: Settings of the model.
        data: Settings of the data.
        seed: Seed of the model's initialization.

    Returns:
        SHA-256 (hex) of the file.

    Raises:
        StorageError: The file cannot be written.
    """
    from safetensors.torch import save

    columns = {name: getattr(examples, name).contiguous() for name in ("input_ids", "lengths", "labels", "units")}
    settings = {"model": model.model_dump(mode="json"), "data": data.model_dump(mode="json"), "seed": seed}
    content = save(columns, metadata={_METADATA_KEY: json.dumps(settings)})
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def load_examples(path: Path, sha256: str) -> StoredExamples:
    """Load records, and build the run's model.

    Args:
        path: File that `save_examples` wrote.
        sha256: SHA-256 (hex) of its content.

    Raises:
        ProjectError: The file is missing or not the one that was written, or the model cannot be built.
    """
    read_verified(path, sha256)
    from pydantic import ValidationError
    from safetensors import SafetensorError, safe_open

    from fedglm.autoglm.data.examples import Examples
    from fedglm.autoglm.errors import DataError, ModelError
    from fedglm.autoglm.models.build import build_model
    from fedglm.autoglm.settings import DataSettings, ModelSettings
    from fedglm.autoglm.site_data import make_public_task

    try:
        with safe_open(path, "pt") as file:
            stored = json.loads(file.metadata()[_METADATA_KEY])
            examples = Examples(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no dict)
        settings, seed = ModelSettings(**stored["model"]), int(stored["seed"])
        task = make_public_task(DataSettings(**stored["data"]), settings)
        return StoredExamples(build_model(settings, task, seed=seed), task, examples, seed)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, ValidationError, DataError, ModelError) as exc:
        raise ProjectError(f"{path} serves no more ({type(exc).__name__}): start a new run") from exc
