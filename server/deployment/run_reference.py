"""Reference records of a run in its folder: `reference.safetensors`, token sequences and classes.

The server's process reads them instead of their original file, which may change or be removed during the run. With them
the process needs torch; without them it does not import it.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from fedglm.core.files import write_atomically
from fedglm.run_folder.names import REFERENCE
from fedglm.server.aggregation.reference_check import ReferenceLosses
from fedglm.server.deployment.run_file import read_verified
from fedglm.server.errors import ProjectError

if TYPE_CHECKING:
    from fedglm.autoglm.data.examples import Examples
    from fedglm.autoglm.settings import DataSettings, ModelSettings


_METADATA_KEY = "fedglm"


def save_reference(
    folder: Path, examples: "Examples", *, model: "ModelSettings", data: "DataSettings", seed: int
) -> str:
    """Write the reference records of a run, and the settings of its model.

    Args:
        folder: Folder of the run.
        examples: Reference records.
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
    write_atomically(folder / REFERENCE, content)
    return hashlib.sha256(content).hexdigest()


def load_reference(folder: Path, sha256: str | None) -> ReferenceLosses | None:
    """Load the loss on the reference records of a run; None where it has none.

    Args:
        folder: Folder of the run.
        sha256: SHA-256 (hex) of the file from `save_reference`; None for a run without reference records.

    Raises:
        ProjectError: The file is missing or not the one that was written, or the model cannot be built.
    """
    if sha256 is None:
        return None
    path = folder / REFERENCE
    read_verified(path, sha256)
    from pydantic import ValidationError
    from safetensors import SafetensorError, safe_open

    from fedglm.autoglm.data.examples import Examples
    from fedglm.autoglm.errors import DataError, ModelError
    from fedglm.autoglm.models.build import build_model
    from fedglm.autoglm.settings import DataSettings, ModelSettings
    from fedglm.autoglm.site_data import make_public_task
    from fedglm.autoglm.training.reference import ReferenceLoss

    try:
        with safe_open(path, "pt") as file:
            stored = json.loads(file.metadata()[_METADATA_KEY])
            examples = Examples(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no dict)
        settings, seed = ModelSettings(**stored["model"]), int(stored["seed"])
        task = make_public_task(DataSettings(**stored["data"]), settings)
        return ReferenceLoss(build_model(settings, task, seed=seed), task, examples, seed=seed)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, ValidationError, DataError, ModelError) as exc:
        raise ProjectError(f"{path} serves no more ({type(exc).__name__}): start a new run") from exc
