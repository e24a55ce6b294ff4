"""The reference records of a run, as they lie in its folder: `reference.safetensors`, token sequences and classes.

The server's process reads them instead of the file that they came from, which may change or go away while a run lasts.
With them it needs torch; without, it does not wait for it.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from fedglm.core.files import write_atomically
from fedglm.run_folder.names import REFERENCE
from fedglm.server.aggregation.reference_check import ReferenceLosses
from fedglm.server.deployment.run_file import read_kept
from fedglm.server.errors import ProjectError

if TYPE_CHECKING:
    from fedglm.autoglm.data.examples import Examples
    from fedglm.autoglm.settings import DataSettings, ModelSettings


_WORDS = "fedglm"


def save_reference(
    folder: Path, examples: "Examples", *, model: "ModelSettings", data: "DataSettings", seed: int
) -> str:
    """Write the records of a run, and from what its model is built.

    Returns:
        Hex SHA-256 of the file.

    Raises:
        StorageError: The file cannot be written.
    """
    from safetensors.torch import save

    columns = {name: getattr(examples, name).contiguous() for name in ("input_ids", "lengths", "labels", "units")}
    built = {"model": model.model_dump(mode="json"), "data": data.model_dump(mode="json"), "seed": seed}
    content = save(columns, metadata={_WORDS: json.dumps(built)})
    write_atomically(folder / REFERENCE, content)
    return hashlib.sha256(content).hexdigest()


def load_reference(folder: Path, sha256: str | None) -> ReferenceLosses | None:
    """What measures models on the records of a run; None where it has none.

    Args:
        folder: The run's.
        sha256: Of the file, as `save_reference` returned it; None where the run was prepared without.

    Raises:
        ProjectError: The file is missing or not the one that was written, or the model cannot be built any more.
    """
    if sha256 is None:
        return None
    path = folder / REFERENCE
    read_kept(path, sha256)
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
            built = json.loads(file.metadata()[_WORDS])
            examples = Examples(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no dict)
        settings, seed = ModelSettings(**built["model"]), int(built["seed"])
        task = make_public_task(DataSettings(**built["data"]), settings)
        return ReferenceLoss(build_model(settings, task, seed=seed), task, examples, seed=seed)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, ValidationError, DataError, ModelError) as exc:
        raise ProjectError(f"{path} serves no more ({type(exc).__name__}): start a new run") from exc
