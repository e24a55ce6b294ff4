"""Evaluation of a deployed run's models on held-out records of the server: `evaluation.safetensors` in its folder.

No site sends anything for it, so it costs no privacy budget.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedglm.run_folder.names import EVALUATION
from fedglm.server.deployment.run_examples import load_examples, save_examples

if TYPE_CHECKING:
    from fedglm.autoglm.data.examples import Examples
    from fedglm.autoglm.settings import DataSettings, ModelSettings
    from fedglm.autoglm.tasks.evaluation import Evaluation


def save_evaluation(
    folder: Path, examples: "Examples", *, model: "ModelSettings", data: "DataSettings", seed: int
) -> str:
    """Write the held-out records of a run, and the settings of its model; return the file's SHA-256 (hex).

    Args:
        folder: Folder of the run.
        examples: Held-out records.
        model: Settings of the model.
        data: Settings of the data.
        seed: Seed of the model's initialization.

    Raises:
        StorageError: The file cannot be written.
    """
    return save_examples(folder / EVALUATION, examples, model=model, data=data, seed=seed)


def load_evaluation(folder: Path, sha256: str | None) -> "Callable[[np.ndarray], Evaluation] | None":
    """Load what evaluates a model vector, of shape (n,), float32, on the held-out records of a run.

    Args:
        folder: Folder of the run.
        sha256: SHA-256 (hex) of the file from `save_evaluation`; None for a run without held-out records.

    Returns:
        The evaluation, with one thread, so that its bits do not depend on the number of cores; None without records.

    Raises:
        ProjectError: The file is missing or not the one that was written, or the model cannot be built.
    """
    if sha256 is None:
        return None
    import torch

    from fedglm.autoglm.models.parameters import load_vector

    torch.set_num_threads(1)
    stored = load_examples(folder / EVALUATION, sha256)

    def evaluate(vector: np.ndarray) -> "Evaluation":
        load_vector(stored.model, vector)
        return stored.task.evaluate(stored.model, stored.examples)

    return evaluate
