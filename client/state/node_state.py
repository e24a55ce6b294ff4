"""What a node remembers between rounds, on its own disk: the model it holds, the residual, the update in flight.

The folder holds `state.json` and the vectors it names, as raw little-endian float32. A change writes new vectors under
new names and then replaces `state.json`: that one rename is the commit, so a node killed at any moment wakes up in the
old state or the new one. Vectors that `state.json` no longer names, and what a killed process left half-written, are
removed afterwards.

    residual   what earlier updates left out and the server has acknowledged
    pending    the update that was sent last: its bytes, and the residual that becomes valid once it is acknowledged
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedglm.autoglm.tasks.evaluation import Evaluation
from fedglm.client.state.state_files import RECORD, StateFiles
from fedglm.core.errors import FedglmError
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.vault import Vault

FORMAT = 3
_READ = (2, FORMAT)


class StateError(FedglmError, RuntimeError):
    """The node's state on disk cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True)
class Measured:
    """What was measured for an answer that brings no update; sent again as it is when the server asks again.

    Attributes:
        round: Round it answers.
        base_sha256: Hash of the model that was measured.
        attempt: Id by which the ledger knows it: see `privacy.ledger.charges.Charge`.
        evaluation: The measures; None where measuring failed, which the server is not told.
        noise: How they were noised.
        commitment: As in `Pending`.
    """

    round: int
    base_sha256: str
    attempt: str
    evaluation: Evaluation | None
    noise: Mechanism | None
    commitment: str = ""


@dataclass(frozen=True)
class Pending:
    """An update that was made and is not yet acknowledged.

    Attributes:
        round: Round it answers.
        base_sha256: Hash of the model it was trained from.
        attempt: Id by which the ledger knows it: see `privacy.ledger.charges.Charge`.
        blob: The coded bytes, sent again as they are when the server asks for this round again; None where the attempt
            failed, which the server is not told.
        residual: What becomes the residual once the server has acknowledged the update; float32 vector, or None
            where nothing is kept.
        rate: Learning rate of the round, None where it is not known.
        noise: How the update was noised, by which it is charged whenever it leaves; None for not at all.
        measured: What was measured for the same answer, None for nothing.
        measured_noise: How that was noised.
        commitment: Of the data set that it was made from, as in the ledger: what is charged for it later is charged
            for those data. Empty where nobody keeps a ledger.
    """

    round: int
    base_sha256: str
    attempt: str
    blob: bytes | None
    residual: np.ndarray | None
    rate: float | None = None
    noise: Mechanism | None = None
    measured: Evaluation | None = None
    measured_noise: Mechanism | None = None
    commitment: str = ""


@dataclass
class NodeState:
    """A node's memory of one federation.

    Attributes:
        run: Run that the rest belongs to.
        version: Version of `base`; -1 before the first.
        base: float32 vector of the model that the node holds, or None.
        residual: float32 vector, or None for zero.
        residual_round: Round at which the residual was made.
        residual_rate: Learning rate of that round, None where it is not known.
        residual_noised: Whether the residual comes from noised updates alone.
        pending: The update in flight.
        measured: The last answer of measures alone.
        vault: Encrypts the state at rest; None for none.
    """

    run: str = ""
    version: int = -1
    base: np.ndarray | None = None
    residual: np.ndarray | None = None
    residual_round: int = 0
    residual_rate: float | None = None
    residual_noised: bool = False
    pending: Pending | None = None
    measured: Measured | None = None
    vault: Vault | None = field(default=None, repr=False)
    _stored: dict[str, str] = field(default_factory=dict, repr=False)

    def settle(self, acknowledged: int, asked: int) -> None:
        """Bring the residual to what the server knows.

        The pending residual is committed if the server folded that update in; else the update of a later round replaces
        it. A residual of the round that is asked for, or a later one, is dropped: the server went back to an older
        checkpoint and has forgotten that round.

        Args:
            acknowledged: The last round whose update the server folded in.
            asked: The round that is asked for.
        """
        pending = self.pending
        if pending is not None and pending.blob is not None and pending.round == acknowledged:
            self.residual, self.residual_round = pending.residual, pending.round
            self.residual_rate, self.residual_noised = pending.rate, pending.noise is not None
            self.pending = None
        if self.residual_round >= asked:
            self.residual, self.residual_round, self.residual_rate = None, 0, None

    def save(self, folder: Path) -> None:
        """Write the state durably.

        Raises:
            StorageError: The disk is full or cannot be written; the old state stands.
        """
        vectors: dict[str, np.ndarray | bytes | None] = {"base": self.base, "residual": self.residual}
        record: dict[str, Any] = {
            "format": FORMAT,
            "run": self.run,
            "version": self.version,
            "residual_round": self.residual_round,
            "residual_rate": self.residual_rate,
            "residual_noised": self.residual_noised,
        }
        if self.pending is not None:
            pending = self.pending
            record["pending"] = {
                "round": pending.round,
                "base_sha256": pending.base_sha256,
                "attempt": pending.attempt,
                "failed": pending.blob is None,
                "rate": pending.rate,
                "noise": _fields(pending.noise),
                "measured": pending.measured and asdict(pending.measured),
                "measured_noise": _fields(pending.measured_noise),
                "commitment": pending.commitment,
            }
            vectors["pending_residual"], vectors["pending_blob"] = pending.residual, pending.blob
        if self.measured is not None:
            record["measured"] = {**asdict(self.measured), "noise": _fields(self.measured.noise)}
        disk, files = StateFiles(folder, self.vault), {}
        for name, content in vectors.items():
            if content is None:
                continue
            data = content if isinstance(content, bytes) else content.astype("<f4", copy=False).tobytes()
            files[name] = disk.name(name, data)
            if self._stored.get(name) != files[name] or not disk.is_there(files[name]):
                disk.write(files[name], data)
        record["files"] = files
        disk.write(RECORD, json.dumps(record, sort_keys=True, indent=1).encode())
        self._stored = files
        disk.remove_others({*files.values(), RECORD})

    @classmethod
    def load(cls, folder: Path, size: int, *, run: str | None = None, vault: Vault | None = None) -> "NodeState":
        """Read the state from `folder`; a fresh one where there is none, or where it is of another run than `run`.

        Args:
            folder: The node's folder of this federation.
            size: Number of federated parameters; vectors of another length are refused.
            run: Identity of the run that is asked for; None takes the state of any.
            vault: Opens what is encrypted, and encrypts what is saved; a state that is not yet is read as it is.

        Raises:
            StateError: A file is damaged, of another model, or sealed by another key.
        """
        path, disk = folder / RECORD, StateFiles(folder, vault)
        if not path.is_file():
            return cls(run=run or "", vault=vault)
        try:
            record = json.loads(disk.read(RECORD))
            if record["format"] not in _READ:
                raise StateError(f"{path} has format {record['format']}, this version reads {FORMAT}")
            if run not in (None, record["run"]):
                return cls(run=run, vault=vault)
            files: dict[str, str] = record["files"]
            content = {name: disk.read(file) for name, file in files.items()}
            vectors = {name: _vector(data, size) for name, data in content.items() if name != "pending_blob"}
            pending = measured = None
            # An answer of an older version has no id by which a charge is known: it is made anew, and charged.
            if (known := record.get("pending")) and record["format"] == FORMAT:
                pending = Pending(
                    round=int(known["round"]),
                    base_sha256=str(known["base_sha256"]),
                    attempt=str(known["attempt"]),
                    blob=None if known["failed"] else content["pending_blob"],
                    residual=vectors.get("pending_residual"),
                    rate=_rate(known["rate"]),
                    noise=_mechanism(known["noise"]),
                    measured=known["measured"] and Evaluation(**known["measured"]),
                    measured_noise=_mechanism(known["measured_noise"]),
                    commitment=str(known["commitment"]),
                )
            if known := record.get("measured"):
                measured = Measured(
                    round=int(known["round"]),
                    base_sha256=str(known["base_sha256"]),
                    attempt=str(known["attempt"]),
                    evaluation=known["evaluation"] and Evaluation(**known["evaluation"]),
                    noise=_mechanism(known["noise"]),
                    commitment=str(known["commitment"]),
                )
            return cls(
                run=str(record["run"]),
                version=int(record["version"]),
                base=vectors.get("base"),
                residual=vectors.get("residual"),
                residual_round=int(record["residual_round"]),
                residual_rate=_rate(record.get("residual_rate")),
                residual_noised=record.get("residual_noised") is True,
                pending=pending,
                measured=measured,
                vault=vault,
                _stored=files,
            )
        except (AttributeError, KeyError, TypeError, ValueError, OSError, PrivacyError) as exc:
            raise StateError(f"the node's state in {folder} is damaged ({exc}): move it away to start afresh") from exc


def _rate(value: object) -> float | None:
    return None if value is None else float(str(value))


def _fields(noise: Mechanism | None) -> dict[str, Any] | None:
    return None if noise is None else dict(noise.to_fields())


def _mechanism(fields: Any) -> Mechanism | None:
    return None if fields is None else Mechanism.from_fields(fields)


def _vector(data: bytes, size: int) -> np.ndarray:
    if len(data) != 4 * size:
        raise ValueError(f"a vector has {len(data) // 4} values, the model has {size}")
    return np.frombuffer(data, dtype="<f4").astype(np.float32)
