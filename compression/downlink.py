"""The model's way down, in versions: both ends hold the same bits, and what travels is what changed.

The server codes a step, **adopts what the nodes will decode**, and numbers the result. A node that holds version 5 gets
the coded deltas 6, 7, ... that it lacks; a newcomer, or one away for too long, gets a snapshot. Every version lies on a
grid: with float16 a snapshot of half the size holds the very bits that the others have replayed. What coding and
rounding leave out waits in the server's residual.

A message is the envelope of `wire` (magic FD, kind 1 deltas, kind 2 snapshot, kind 3 coded snapshot) around:

    bytes   what
    1       grid: 1 float16, 2 float32
    8       first bytes of the layout's SHA-256
    32      SHA-256 of the version that results, as n little-endian float32
    varint  version it starts from (a snapshot: the one it holds)
    varint  version that results
    ...     deltas: for each version on the way, the length as a varint and the codec's blob
            snapshot: n float16 or float32, as the grid says
            coded snapshot: n float16 without loss, as in `snapshots`; the server sends the shorter of the two

To replay a delta: add each decoded value to the version before, in float32, and round to the grid, ties to even. What
is held is rounded to the grid first: version 0 may be an initialisation that both ends computed for themselves.
"""

import hashlib
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fedglm.compression import snapshots
from fedglm.compression.codec import Codec, Update, decode
from fedglm.compression.errors import CodecError, VersionMismatch
from fedglm.compression.feedback import ErrorFeedback
from fedglm.compression.vectors import Vector, checked
from fedglm.compression.wire import DOWNLINK, Blob, Reader, seal, unseal, varint

Grid: TypeAlias = Literal["fp16", "fp32"]

_DTYPES: dict[Grid, str] = {"fp16": "<f2", "fp32": "<f4"}
_GRID_IDS: dict[Grid, int] = {"fp16": 1, "fp32": 2}
_GRIDS = {grid_id: grid for grid, grid_id in _GRID_IDS.items()}
_DELTAS, _SNAPSHOT, _CODED_SNAPSHOT = 1, 2, 3
_LAYOUT_BYTES = 8
_MOST_CODED = 1 << 24
"""Elements of a snapshot that is worth coding: beyond, a seventh of its bytes takes more seconds than it saves."""
HEADER = 64
"""Most bytes of a message around one delta."""


class ModelVersions:
    """The server's side: the model as every node holds it, and the deltas that lead there.

    Keeps the newest deltas that together are shorter than the model: an older node is served better by a snapshot.

    Args:
        vector: shape (n,), float32: version 0, before it is rounded to the grid.
        layout_sha256: hex hash of the vector's layout (`Layout.sha256`).
        codec: codes the deltas.
        feedback: keep what coding and rounding leave out for the next step.
        grid: the values that a published version may have.

    Attributes:
        version: number of the last published version.
        vector: that version, shape (n,), float32, read-only.
        sha256: its hex SHA-256, over n little-endian float32.

    Raises:
        ValueError: a vector that is empty, not finite or outside the grid's range, or a hash that is none.
    """

    def __init__(
        self, vector: Vector, layout_sha256: str, codec: Codec, *, feedback: bool = True, grid: Grid = "fp16"
    ) -> None:
        if grid not in _DTYPES:
            raise ValueError(f"the grid is fp16 or fp32, not {grid!r}")
        vector = checked(vector, "the model")
        self._layout = _layout_prefix(layout_sha256)
        self._codec = codec
        self._grid: Grid = grid
        self._deltas: deque[bytes] = deque()
        rounded = on_grid(vector, grid)
        self._feedback = ErrorFeedback(vector.size, residual=vector - rounded) if feedback else None
        self._hold(0, rounded)

    def publish(self, step: Vector, scale: float = 1.0) -> int:
        """Code a step, adopt what the nodes will decode as the next version, and return the coded bytes.

        Args:
            step: shape (n,), float32: what the server's optimizer adds to the model.
            scale: factor on the residual, from 0 to 1; see `ErrorFeedback.encode`.

        Raises:
            ValueError: a step of another shape or not finite, or a model that leaves the grid's range; the version
                is then the old one.
        """
        step = checked(step, "the step", self.vector.size)
        update = step if self._feedback is None else self._feedback.compensate(step, scale=scale)
        delta = self._codec.encode(update)
        vector = _advance(self.vector, self._codec.decode(delta, self.vector.size), self._grid)
        if self._feedback is not None:
            self._feedback.commit(vector - self.vector)
        self._hold(self.version + 1, vector)
        self._deltas.append(varint(len(delta)) + delta)
        self._drop_old()
        return len(delta)

    def frames_since(self, held: int | None) -> bytes:
        """The message for a node that holds version `held`, or nothing (None).

        A version that this server never published, as after a restart from an older checkpoint, gets a snapshot.
        """
        if held is None or not 0 <= self.version - held <= len(self._deltas):
            return self.snapshot()
        if held not in self._messages:
            lacking = list(self._deltas)[len(self._deltas) - (self.version - held) :]
            message = self._message(_DELTAS, held, *lacking)
            # A snapshot takes time to code: only where the deltas come near to what one may take.
            if len(message) > self.vector.size and len(self.snapshot()) < len(message):
                message = self.snapshot()
            self._messages[held] = message
        return self._messages[held]

    def snapshot(self) -> bytes:
        """The message that holds the whole model."""
        if None not in self._messages:
            kind, content = _SNAPSHOT, self.vector.astype(_DTYPES[self._grid]).tobytes()
            if self._grid == "fp16" and self.vector.size <= _MOST_CODED:
                coded = snapshots.pack(self.vector)
                if len(coded) < len(content):
                    kind, content = _CODED_SNAPSHOT, coded
            self._messages[None] = self._message(kind, self.version, content)
        return self._messages[None]

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All that `restore` needs besides the codec, as arrays that safetensors and `np.savez` store."""
        state: dict[str, npt.NDArray[Any]] = {
            "version": np.array([self.version], np.int64),
            "vector": self.vector.astype(_DTYPES[self._grid]),
            "deltas": np.frombuffer(b"".join(self._deltas), np.uint8),
            "delta_sizes": np.array([len(delta) for delta in self._deltas], np.int64),
        }
        if self._feedback is not None:
            state["residual"] = self._feedback.residual.copy()
        return state

    @classmethod
    def restore(
        cls,
        state: Mapping[str, npt.NDArray[Any]],
        layout_sha256: str,
        codec: Codec,
        *,
        feedback: bool = True,
        grid: Grid = "fp16",
    ) -> "ModelVersions":
        """Go on from what `state` returned; the other arguments are those of the constructor.

        Raises:
            CodecError: a state that `state` did not return, or that is of another grid.
        """
        try:
            if state["vector"].dtype != np.dtype(_DTYPES[grid]):
                raise CodecError(f"they are on a grid of {state['vector'].dtype}, not {grid}")
            versions = cls(state["vector"].astype(np.float32), layout_sha256, codec, feedback=feedback, grid=grid)
            if feedback and "residual" in state:
                versions._feedback = ErrorFeedback(versions.vector.size, residual=state["residual"])
            (versions.version,) = state["version"].tolist()
            deltas = Reader(memoryview(state["deltas"].tobytes()))
            versions._deltas.extend(bytes(deltas.take(size)) for size in state["delta_sizes"].tolist())
            deltas.finish()
            if versions.version < len(versions._deltas):
                raise CodecError(f"{len(versions._deltas)} deltas lead to version {versions.version}")
        except (KeyError, ValueError) as exc:
            raise CodecError(f"the stored model versions cannot be read: {exc}") from exc
        return versions

    def _hold(self, version: int, vector: Vector) -> None:
        self._messages: dict[int | None, bytes] = {}  # by the version held: many nodes lack the same
        vector.flags.writeable = False
        self.version = version
        self.vector = vector
        self.sha256 = vector_sha256(vector)

    def _drop_old(self) -> None:
        limit = self.vector.size * np.dtype(_DTYPES[self._grid]).itemsize
        total = sum(len(delta) for delta in self._deltas)
        while total >= limit:
            total -= len(self._deltas.popleft())

    def _message(self, kind: int, start: int, *parts: bytes) -> bytes:
        head = bytes([_GRID_IDS[self._grid]]) + self._layout + bytes.fromhex(self.sha256)
        return seal(DOWNLINK, kind, head, varint(start), varint(self.version), *parts)


class Replica:
    """A node's side: the model it holds, moved on by the server's messages.

    Args:
        version: the version it holds.
        vector: that version, shape (n,), float32. A newcomer gives zeros of the right size and applies a snapshot.
        layout_sha256: hex hash of the layout; when given, messages for any other are refused.

    Attributes:
        version: the version it holds.
        vector: that version, shape (n,), float32, read-only.

    Raises:
        ValueError: a vector that is empty or not finite, or a hash that is none.
    """

    def __init__(self, version: int, vector: Vector, layout_sha256: str | None = None) -> None:
        self.version = version
        self.vector = checked(vector, "the model").copy()
        self.vector.flags.writeable = False
        self._layout = None if layout_sha256 is None else _layout_prefix(layout_sha256)

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the vector, over n little-endian float32."""
        return vector_sha256(self.vector)

    def apply(self, blob: Blob) -> None:
        """Move to the version that a message leads to, all or nothing.

        Raises:
            VersionMismatch: deltas that start from another version, or from other bits, than those held: ask for a
                snapshot.
            CodecError: a message that is damaged or meant for another model; nothing is changed.
        """
        kind, reader = unseal(blob, DOWNLINK)
        if kind not in (_DELTAS, _SNAPSHOT, _CODED_SNAPSHOT):
            raise CodecError(f"a downlink message of unknown kind {kind}")
        (grid_id,) = reader.take(1)
        if grid_id not in _GRIDS:
            raise CodecError(f"a downlink message on unknown grid {grid_id}")
        layout = reader.take(_LAYOUT_BYTES)
        if self._layout is not None and layout != self._layout:
            raise CodecError("the downlink message is for a model of another layout")
        sha256 = reader.take(hashlib.sha256().digest_size).hex()
        start, version = reader.varint(), reader.varint()
        if kind != _DELTAS:
            if start != version:
                raise CodecError(f"a snapshot of version {start} that calls itself {version}")
            vector = _read_snapshot(reader, self.vector.size, _GRIDS[grid_id], coded=kind == _CODED_SNAPSHOT)
            if vector_sha256(vector) != sha256:
                raise CodecError(f"the snapshot of version {version} does not match its SHA-256")
        else:
            if start != self.version:
                raise VersionMismatch(
                    f"deltas from version {start}, but version {self.version} is held: ask for a snapshot"
                )
            vector = self._replay(reader, version, _GRIDS[grid_id])
            if vector_sha256(vector) != sha256:
                raise VersionMismatch(f"version {version} does not match its SHA-256: ask for a snapshot")
        vector.flags.writeable = False
        self.version, self.vector = version, vector

    def _replay(self, reader: Reader, version: int, grid: Grid) -> Vector:
        """What is held, moved on delta by delta to `version`."""
        size = self.vector.size
        if version < self.version:
            raise CodecError(f"deltas that lead back from version {self.version} to {version}")
        if reader.remaining >= size * np.dtype(_DTYPES[grid]).itemsize:
            raise CodecError("the deltas are longer than a snapshot")  # so work is bounded by the model's size
        vector = on_grid(self.vector, grid)
        for _ in range(version - self.version):  # each takes bytes, so a false number ends at once
            update = decode(reader.take(reader.varint()), size=size)
            vector = _advance(vector, update, grid)
        reader.finish()
        return vector


def _advance(vector: Vector, update: Update, grid: Grid) -> Vector:
    """The next version: the same float32 additions and the same rounding at both ends."""
    advanced = vector.copy()
    with np.errstate(over="ignore"):  # reported by on_grid
        update.add_to(advanced, 1.0)
    return on_grid(advanced, grid)


def on_grid(vector: Vector, grid: Grid) -> Vector:
    """`vector` with each value rounded to the grid, ties to even."""
    with np.errstate(over="ignore"):  # reported just below
        rounded = vector.astype(_DTYPES[grid]).astype(np.float32)
    finite = np.isfinite(rounded)
    if not finite.all():
        where = int(np.argmin(finite))
        raise CodecError(
            f"the model holds {vector[where]} at position {where}, out of range of the {grid} grid"
            + ("; use grid='fp32'" if grid == "fp16" else "")
        )
    return rounded


def _read_snapshot(reader: Reader, size: int, grid: Grid, *, coded: bool) -> Vector:
    if coded and grid != "fp16":
        raise CodecError(f"a coded snapshot on the grid {grid}: only fp16 has one")
    vector: Vector = snapshots.unpack(reader, size) if coded else reader.array(_DTYPES[grid], size).astype(np.float32)
    reader.finish()
    if not np.isfinite(vector).all():
        raise CodecError("the snapshot holds NaN or infinity")
    return vector


def vector_sha256(vector: Vector) -> str:
    """Hex SHA-256 of a vector of shape (n,), as n little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(vector, "<f4").data).hexdigest()


def _layout_prefix(layout_sha256: str) -> bytes:
    """The first bytes of a hex SHA-256, which travel with each message."""
    digest = bytes.fromhex(layout_sha256)
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError(f"a layout's SHA-256 has 64 hex digits, not {len(layout_sha256)}")
    return digest[:_LAYOUT_BYTES]
