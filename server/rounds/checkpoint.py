"""The server's memory on disk: one file a round, whole or absent, so that a killed run goes on with the same bits.

A checkpoint is a safetensors file: vectors as tensors, the rest as JSON in its metadata. Nothing in it is unpickled.
The last two are kept: should the disk damage the newest, the one before it still serves.
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

KEPT = 2


class CheckpointError(FedglmError, RuntimeError):
    """No checkpoint in the folder can be read."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the next round depends on.

    Attributes:
        run: Identity of the run.
        round: Rounds done.
        layout: SHA-256 (hex) of the model's layout.
        participants: The book of nodes.
        rows: One object a round done, as in `rounds.jsonl`.
        versions: Arrays of the versioned downlink.
        optimizer: Arrays of the server optimizer.
        aggregation: Arrays of the aggregation.
    """

    run: str
    round: int
    layout: str
    participants: dict[str, dict[str, int]]
    rows: list[dict[str, Any]]
    versions: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    aggregation: dict[str, np.ndarray] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write it durably, then remove all but this one and the one before it.

        Raises:
            StorageError: The disk is full or cannot be written; earlier checkpoints stand.
        """
        tensors = {f"versions/{name}": array for name, array in self.versions.items()}
        tensors |= {f"optimizer/{name}": array for name, array in self.optimizer.items()}
        tensors |= {f"robust/{name}": array for name, array in self.aggregation.items()}
        words: dict[str, Any] = {
            "run": self.run,
            "round": self.round,
            "layout": self.layout,
            "participants": self.participants,
            "rows": self.rows,
        }
        contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        # safetensors has no checksum, and every node would take up what a flipped bit made of the model.
        words["sha256"] = {name: _sha256(array) for name, array in contiguous.items()}
        data = save(contiguous, metadata={"fedglm": json.dumps(words)})
        path = folder / f"round-{self.round:07d}.safetensors"
        write_atomically(path, data)
        earlier = sorted(other for other in folder.glob("round-*.safetensors") if other.name < path.name)
        kept = {path, *earlier[-(KEPT - 1) :]}
        # Besides older ones: those of a run that is begun anew, and what a killed process left half-written.
        for stale in (*folder.glob("round-*.safetensors"), *folder.glob(".round-*")):
            if stale not in kept:
                stale.unlink(missing_ok=True)


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read; None where there is none at all.

    Raises:
        CheckpointError: There are checkpoints and all are damaged.
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
        words = json.loads(file.metadata()["fedglm"])
        for name in file.keys():  # noqa: SIM118 (not a mapping: it has keys() but is not iterable)
            group, _, key = name.partition("/")
            groups[group][key] = file.get_tensor(name)
            if _sha256(groups[group][key]) != words["sha256"][name]:
                raise ValueError(f"{name} does not have the content it was written with")
    return Checkpoint(
        run=words["run"],
        round=words["round"],
        layout=words["layout"],
        participants=words["participants"],
        rows=words["rows"],
        versions=groups["versions"],
        optimizer=groups["optimizer"],
        aggregation=groups["robust"],
    )
