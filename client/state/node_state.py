"""A node's state between rounds, on its own disk: the model it holds, the residual, the update in flight.

The folder holds `state.json` and the vectors it names, as raw little-endian float32. A change writes new vectors under
new names and then replaces `state.json`: that rename is the commit, so a node killed at any moment restarts in the old
state or the new one. Vectors that `state.json` no longer names, and files that a killed process left half-written, are
removed afterwards.

    residual   omitted from earlier updates that the server has acknowledged
    pending    the last update sent: its bytes, and the residual that becomes valid once it is acknowledged
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
"""Version of `state.json`."""

_READABLE_FORMATS = (2, FORMAT)


class StateError(FedglmError, RuntimeError):
    """The node's state on disk cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True)
class StoredEvaluation:
    """The last evaluation that was made without an update; sent again unchanged when the server asks again.

    `state.json` holds the attributes by these names.

    Attributes:
        round: Number of the round that it answers.
        base_sha256: SHA-256 (hex) of the evaluated model.
        attempt: Id of the attempt in the ledger: see `privacy.ledger.charges.Charge`.
        evaluation: The evaluation; None where it failed, which is not reported to the server.
        noise: Mechanism that noised it; None for no noise.
        commitment: As in `PendingUpdate`.
    """

    round: int
    base_sha256: str
    attempt: str
    evaluation: Evaluation | None
    noise: Mechanism | None
    commitment: str = ""


@dataclass(frozen=True)
class PendingUpdate:
    """An update that was made and is not acknowledged yet.

    Attributes:
        round: Number of the round that it answers.
        base_sha256: SHA-256 (hex) of the model that it was trained from.
        attempt: Id of the attempt in the ledger: see `privacy.ledger.charges.Charge`.
        blob: The coded bytes, sent again unchanged when the server asks for this round again; None where the attempt
            failed, which is not reported to the server.
        residual: The residual that becomes valid once the server has acknowledged the update, shape (size,), float32;
            None where none is kept.
        rate: Learning rate of the round; None where it is unknown.
        noise: Mechanism that noised the update, which it is charged for whenever it leaves; None for no noise.
        evaluation: Evaluation in the same answer; None for none.
        evaluation_noise: Mechanism that noised the evaluation; None for no noise.
        commitment: Commitment to the data set that it was made from, as in the ledger: a later charge for it is for
            these data. Empty where nobody keeps a ledger.
    """

    round: int
    base_sha256: str
    attempt: str
    blob: bytes | None
    residual: np.ndarray | None
    rate: float | None = None
    noise: Mechanism | None = None
    evaluation: Evaluation | None = None
    evaluation_noise: Mechanism | None = None
    commitment: str = ""


@dataclass
class NodeState:
    """A node's state of one federation.

    Attributes:
        run: Identity of the run that the state belongs to.
        version: Version of `base`; -1 before the first.
        base: Model that the node holds, shape (size,), float32; None before the first.
        residual: Residual of error feedback, shape (size,), float32; None for zero.
        residual_round: Round in which the residual was made.
        residual_rate: Learning rate of that round; None where it is unknown.
        residual_noised: Whether the residual comes from noised updates alone.
        pending: The update in flight; None for none.
        evaluation: The last evaluation without an update; None for none.
        vault: Encrypts the state at rest; None leaves it unencrypted.
    """

    run: str = ""
    version: int = -1
    base: np.ndarray | None = None
    residual: np.ndarray | None = None
    residual_round: int = 0
    residual_rate: float | None = None
    residual_noised: bool = False
    pending: PendingUpdate | None = None
    evaluation: StoredEvaluation | None = None
    vault: Vault | None = field(default=None, repr=False)
    _stored: dict[str, str] = field(default_factory=dict, repr=False)

    def apply_acknowledgement(self, acknowledged: int, requested: int) -> None:
        """Commit or drop residuals, so that the residual is that of the updates that the server aggregated.

        The pending residual is committed if the server aggregated that update; otherwise the update of a later round
        replaces it. A residual of the requested round or a later one is dropped: the server went back to an older
        checkpoint, which does not include that round.

        Args:
            acknowledged: The last round whose update the server aggregated.
            requested: The round that the server requests.
        """
        pending = self.pending
        if pending is not None and pending.blob is not None and pending.round == acknowledged:
            self.residual, self.residual_round = pending.residual, pending.round
            self.residual_rate, self.residual_noised = pending.rate, pending.noise is not None
            self.pending = None
        if self.residual_round >= requested:
            self.residual, self.residual_round, self.residual_rate = None, 0, None

    def save(self, folder: Path) -> None:
        """Write the state durably.

        Raises:
            StorageError: The disk is full or cannot be written; the old state remains.
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
                "noise": _to_fields(pending.noise),
                "measured": pending.evaluation and asdict(pending.evaluation),
                "measured_noise": _to_fields(pending.evaluation_noise),
                "commitment": pending.commitment,
            }
            vectors["pending_residual"], vectors["pending_blob"] = pending.residual, pending.blob
        if self.evaluation is not None:
            record["measured"] = {**asdict(self.evaluation), "noise": _to_fields(self.evaluation.noise)}
        disk, files = StateFiles(folder, self.vault), {}
        for name, content in vectors.items():
            if content is None:
                continue
            data = content if isinstance(content, bytes) else content.astype("<f4", copy=False).tobytes()
            files[name] = disk.make_name(name, data)
            if self._stored.get(name) != files[name] or not disk.exists(files[name]):
                disk.write(files[name], data)
        record["files"] = files
        disk.write(RECORD, json.dumps(record, sort_keys=True, indent=1).encode())
        self._stored = files
        disk.remove_all_except({*files.values(), RECORD})

    @classmethod
    def load(cls, folder: Path, size: int, *, run: str | None = None, vault: Vault | None = None) -> "NodeState":
        """Read the state from `folder`; make a new one where there is none, or where it is of another run than `run`.

        Args:
            folder: The node's folder of this federation.
            size: Number of federated parameters; vectors of another length are refused.
            run: Identity of the requested run; None takes the state of any run.
            vault: Decrypts encrypted files, and encrypts what is saved; files that are not encrypted are read as well.

        Raises:
            StateError: A file is damaged, of another model, or encrypted with another key.
        """
        path, disk = folder / RECORD, StateFiles(folder, vault)
        if not path.is_file():
            return cls(run=run or "", vault=vault)
        try:
            record = json.loads(disk.read(RECORD))
            if record["format"] not in _READABLE_FORMATS:
                raise StateError(f"{path} has format {record['format']}, this version reads {FORMAT}")
            if run not in (None, record["run"]):
                return cls(run=run, vault=vault)
            files: dict[str, str] = record["files"]
            content = {name: disk.read(file) for name, file in files.items()}
            vectors = {name: _parse_vector(data, size) for name, data in content.items() if name != "pending_blob"}
            pending = evaluation = None
            # An answer of an older version has no id for its charge: it is made again, and charged.
            if (fields := record.get("pending")) and record["format"] == FORMAT:
                pending = PendingUpdate(
                    round=int(fields["round"]),
                    base_sha256=str(fields["base_sha256"]),
                    attempt=str(fields["attempt"]),
                    blob=None if fields["failed"] else content["pending_blob"],
                    residual=vectors.get("pending_residual"),
                    rate=_parse_rate(fields["rate"]),
                    noise=_parse_mechanism(fields["noise"]),
                    evaluation=fields["measured"] and Evaluation(**fields["measured"]),
                    evaluation_noise=_parse_mechanism(fields["measured_noise"]),
                    commitment=str(fields["commitment"]),
                )
            if fields := record.get("measured"):
                evaluation = StoredEvaluation(
                    round=int(fields["round"]),
                    base_sha256=str(fields["base_sha256"]),
                    attempt=str(fields["attempt"]),
                    evaluation=fields["evaluation"] and Evaluation(**fields["evaluation"]),
                    noise=_parse_mechanism(fields["noise"]),
                    commitment=str(fields["commitment"]),
                )
            return cls(
                run=str(record["run"]),
                version=int(record["version"]),
                base=vectors.get("base"),
                residual=vectors.get("residual"),
                residual_round=int(record["residual_round"]),
                residual_rate=_parse_rate(record.get("residual_rate")),
                residual_noised=record.get("residual_noised") is True,
                pending=pending,
                evaluation=evaluation,
                vault=vault,
                _stored=files,
            )
        except (AttributeError, KeyError, TypeError, ValueError, OSError, PrivacyError) as exc:
            raise StateError(f"the node's state in {folder} is damaged ({exc}): move it away to start afresh") from exc


def _parse_rate(value: object) -> float | None:
    return None if value is None else float(str(value))


def _to_fields(noise: Mechanism | None) -> dict[str, Any] | None:
    return None if noise is None else dict(noise.to_fields())


def _parse_mechanism(fields: Any) -> Mechanism | None:
    return None if fields is None else Mechanism.from_fields(fields)


def _parse_vector(data: bytes, size: int) -> np.ndarray:
    if len(data) != 4 * size:
        raise ValueError(f"a vector has {len(data) // 4} values, the model has {size}")
    return np.frombuffer(data, dtype="<f4").astype(np.float32)
