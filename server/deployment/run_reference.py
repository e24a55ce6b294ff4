"""Reference records of a run in its folder: `reference.safetensors`."""

from pathlib import Path
from typing import TYPE_CHECKING

from fedglm.run_folder.names import REFERENCE
from fedglm.server.aggregation.reference_check import ReferenceLosses
from fedglm.server.deployment.run_examples import load_examples, save_examples

if TYPE_CHECKING:
    from fedglm.autoglm.data.examples import Examples
    from fedglm.autoglm.settings import DataSettings, ModelSettings


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
    return save_examples(folder / REFERENCE, examples, model=model, data=data, seed=seed)


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
    stored = load_examples(folder / REFERENCE, sha256)
    from fedglm.autoglm.training.reference import ReferenceLoss

    return ReferenceLoss(stored.model, stored.task, stored.examples, seed=stored.seed)
