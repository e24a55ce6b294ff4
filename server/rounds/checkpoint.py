"""Checkpoints of the server: one file per round, written atomically, so that a killed run resumes with the same bits.

A checkpoint is a safetensors file: vectors as tensors, the rest as JSON in its metadata. Nothing in it is unpickled.
The last two are kept: if the disk damages the newest, the one before it can be loaded.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedglm.core.errors import FedglmError
from fedglm.core.files import write_atomically

MAX_KEPT = 2


class CheckpointError(FedglmError, RuntimeError):
    """No checkpoint in the folder can be read."""


@dataclass(frozen=True)
class Checkpoint:
    """The server's state after a round: everything that the next round depends on.

    Attributes:
        run: Identity of the run.
        round: Number of finished rounds.
        layout: SHA-256 (hex) of the model's layout.
        participants: State of `Participants`, by name of the node.
        rows: Rows of `rounds.jsonl`, one for each finished round.
        versions: State of the versioned downlink.
        optimizer: State of the server optimizer.
        aggregation: State of the aggregation.
    """

    run: str
    round: int
    layout: str
    participants: dict[str, dict[str, Any]]
    rows: list[dict[str, Any]]
    versions: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    aggregation: dict[str, np.ndarray] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the checkpoint durably, then remove all but it and the one before it.

        Raises:
            StorageError: The disk is full or cannot be written; earlier checkpoints remain.
        """
        tensors = {f"versions/{name}": array for name, array in self.versions.items()}
        tensors |= {f"optimizer/{name}": array for name, array in self.optimizer.items()}
        tensors |= {f"robust/{name}": array for name, array in self.aggregation.items()}
        metadata: dict[str, Any] = {
            "run": self.run,
            "round": self.round,
            "layout": self.layout,
            "participants": self.participants,
            "rows": self.rows,
        }
        contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        # safetensors has no checksum, and every node would adopt a model with a flipped bit.
        metadata["sha256"] = {name: _sha256(array) for name, array in contiguous.items()}
        data = save(contiguous, metadata={"fedglm": json.dumps(metadata)})
        path = folder / f"round-{self.round:07d}.safetensors"
        write_atomically(path, data)
        earlier = sorted(other for other in folder.glob("round-*.safetensors") if other.name < path.name)
        kept = {path, *earlier[-(MAX_KEPT - 1) :]}
        # Besides older checkpoints: those of a run that is started anew, and partial files of a killed process.
        for stale in (*folder.glob("round-*.safetensors"), *folder.glob(".round-*")):
            if stale not in kept:
                stale.unlink(missing_ok=True)


def load_latest(folder: Path) -> Checkpoint | None:
    """Load the newest readable checkpoint; None where the folder holds none at all.

    Raises:
        CheckpointError: The folder holds checkpoints and all are damaged.
    """
    paths = sorted(folder.glob("round-*.safetensors"), reverse=True)
    faults = []
    for path in paths:
        try:
            return _load(path)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as exc:
            faults.append(f"{path.name}: {exc}")
    if faults:
        raise CheckpointError(f"no checkpoint in {folder} can be read ({'; '.join(faults)}): start in another folder")
    return None


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def _load(path: Path) -> Checkpoint:
    groups: dict[str, dict[str, np.ndarray]] = {"versions": {}, "optimizer": {}, "robust": {}}
    with safe_open(path, framework="np") as file:
        metadata = json.loads(file.metadata()["fedglm"])
        for name in file.keys():  # noqa: SIM118 (not a mapping: it has keys() but is not iterable)
            group, _, key = name.partition("/")
            groups[group][key] = file.get_tensor(name)
            if _sha256(groups[group][key]) != metadata["sha256"][name]:
                raise ValueError(f"{name} does not have the content it was written with")
    return Checkpoint(
        run=metadata["run"],
        round=metadata["round"],
        layout=metadata["layout"],
        participants=metadata["participants"],
        rows=metadata["rows"],
        versions=groups["versions"],
        optimizer=groups["optimizer"],
        aggregation=groups["robust"],
    )
