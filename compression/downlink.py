"""The versioned downlink: server and nodes hold the same bits, and messages carry coded deltas.

The server codes a step, **adopts what the nodes will decode**, and numbers the result. A node that holds version 5 gets
the coded deltas 6, 7, ... that it is missing; a new node, or one absent for too long, gets a snapshot. Every version is
rounded to a grid of floats: with float16 a snapshot of half the size holds exactly the bits that the other nodes have
replayed. The server's residual keeps what coding and rounding leave out.

A message is the envelope of `wire` (magic FD, kind 1 deltas, kind 2 snapshot, kind 3 coded snapshot) around:

    bytes   what
    1       grid: 1 float16, 2 float32
    8       first bytes of the layout's SHA-256
    32      SHA-256 of the resulting version, as n little-endian float32
    varint  version it starts from (a snapshot: the one it holds)
    varint  resulting version
    ...     deltas: for each version on the way, the length as a varint and the codec's blob
            snapshot: n float16 or float32, as the grid says
            coded snapshot: n float16 without loss, as in `snapshots`; the server sends the shorter of the two

To replay a delta: add each decoded value to the previous version, in float32, and round to the grid, ties to even. The
node's vector is rounded to the grid first: version 0 may be an initialisation that each end computed itself. On either
grid no magnitude is above 65504, the largest float16.

The work that a message can demand of a node is bounded by the model's size: at most `MAX_DELTAS` deltas, in total
shorter than a plain snapshot, that take no longer to decode than `MAX_WORK` snapshots. A server keeps no more.
"""

import hashlib
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fedglm.compression.codec import Codec, Update, decode
from fedglm.compression.errors import CodecError, VersionMismatch
from fedglm.compression.feedback import ErrorFeedback
from fedglm.compression.updates import SparseUpdate
from fedglm.compression.vectors import Positions, Vector, check_vector
from fedglm.compression.wire import snapshots
from fedglm.compression.wire.envelope import DOWNLINK, Blob, Reader, unwrap, varint, wrap

Grid: TypeAlias = Literal["fp16", "fp32"]

_DTYPES: dict[Grid, str] = {"fp16": "<f2", "fp32": "<f4"}
_GRID_IDS: dict[Grid, int] = {"fp16": 1, "fp32": 2}
_GRIDS = {grid_id: grid for grid, grid_id in _GRID_IDS.items()}
_DELTAS, _SNAPSHOT, _CODED_SNAPSHOT = 1, 2, 3
_LAYOUT_BYTES = 8
_MAX_CODED = 1 << 24
"""Maximum elements of a coded snapshot: for larger ones, coding takes more time than sending the saved seventh."""
HEADER = 64
"""Maximum bytes of a message around one delta."""

MAX_DELTAS = 64
"""Maximum deltas of a message. Even an empty one takes a node some milliseconds."""
MAX_WORK = 16
"""Maximum work of a message's deltas (`fedglm.compression.codec.Update.work`) per element of the model."""
LARGEST = float(np.finfo(np.float16).max)
"""Maximum magnitude of a weight: with unbounded base weights a server could choose what local training can answer."""


class _Delta(NamedTuple):
    """A published delta with its length prefix, and the work that it takes a node."""

    code: bytes
    work: int


class ModelVersions:
    """The server's side: the published model, and the deltas that lead to it.

    Keeps the newest deltas that together are shorter than the model, and few enough for one message: for an older node
    a snapshot is shorter.

    Args:
        vector: Version 0, before it is rounded to the grid, shape (n,), float32.
        layout_sha256: Hex SHA-256 of the vector's layout (`Layout.sha256`).
        codec: Codec of the deltas.
        feedback: Whether what coding and rounding leave out is added to the next step.
        grid: Float format to which every published version is rounded.

    Attributes:
        version: Number of the last published version.
        vector: The last published version, shape (n,), float32, read-only.
        sha256: Hex SHA-256 of `vector`, over n little-endian float32.

    Raises:
        ValueError: The vector is empty, not finite or outside the grid's range, or the hash is malformed.
    """

    def __init__(
        self, vector: Vector, layout_sha256: str, codec: Codec, *, feedback: bool = True, grid: Grid = "fp16"
    ) -> None:
        if grid not in _DTYPES:
            raise ValueError(f"the grid is fp16 or fp32, not {grid!r}")
        vector = check_vector(vector, "the model")
        self._layout = _layout_prefix(layout_sha256)
        self._codec = codec
        self._grid: Grid = grid
        self._deltas: deque[_Delta] = deque()
        rounded = round_to_grid(vector, grid)
        self._feedback = ErrorFeedback(vector.size, residual=vector - rounded) if feedback else None
        self._set_version(0, rounded)

    def publish(self, step: Vector, scale: float = 1.0) -> int:
        """Code a step, adopt what the nodes will decode as the next version, and return the code's length in bytes.

        Args:
            step: Step of the server's optimizer, shape (n,), float32.
            scale: Factor on the residual, from 0 to 1; see `ErrorFeedback.encode`.

        Raises:
            ValueError: The step has another shape or is not finite, or the model leaves the grid's range; the version
                is unchanged.
        """
        delta, decoded, vector, _ = self._encode_step(step, scale)
        if self._feedback is not None:
            self._feedback.commit(vector - self.vector)
        self._set_version(self.version + 1, vector)
        self._deltas.append(_Delta(varint(len(delta)) + delta, decoded.work))
        self._drop_old()
        return len(delta)

    def preview(self, step: Vector, scale: float = 1.0) -> tuple[Vector, Vector]:
        """Compute what `publish` would lead to, without publishing: two models of shape (n,), float32.

        The first is the version that it would make; the second includes what coding and rounding would leave out, of
        this step and of earlier ones. Without feedback, which keeps that, both are the same.

        Raises:
            ValueError: As by `publish`.
        """
        _, _, vector, update = self._encode_step(step, scale)
        if self._feedback is None:
            return vector, vector
        self._feedback.rollback()
        return vector, self.vector + update

    def _encode_step(self, step: Vector, scale: float) -> tuple[bytes, Update, Vector, Vector]:
        """Encode a step; return its code, the decoded update, the resulting version, and the update before coding."""
        step = check_vector(step, "the step", self.vector.size)
        update = step if self._feedback is None else self._feedback.compensate(step, scale=scale)
        delta = self._codec.encode(update)
        decoded, vector = self._codec.decode(delta, self.vector.size), self.vector.copy()
        _advance(vector, decoded, self._grid)
        return delta, decoded, vector, update

    def message_since(self, version: int | None) -> bytes:
        """Return the message for a node that holds `version`, or none (None): the missing deltas, or a snapshot.

        A version that this server never published, as after a restart from an older checkpoint, gets a snapshot.
        """
        if version is None or not 0 <= self.version - version <= len(self._deltas):
            return self.snapshot()
        if version not in self._messages:
            missing = list(self._deltas)[len(self._deltas) - (self.version - version) :]
            message = self._build_message(_DELTAS, version, *(delta.code for delta in missing))
            # A snapshot takes time to code: only where the deltas come near to its length.
            if len(message) > self.vector.size and len(self.snapshot()) < len(message):
                message = self.snapshot()
            self._messages[version] = message
        return self._messages[version]

    def snapshot(self) -> bytes:
        """Return the message that holds the complete model."""
        if None not in self._messages:
            kind, content = _SNAPSHOT, self.vector.astype(_DTYPES[self._grid]).tobytes()
            if self._grid == "fp16" and self.vector.size <= _MAX_CODED:
                coded = snapshots.pack(self.vector)
                if len(coded) < len(content):
                    kind, content = _CODED_SNAPSHOT, coded
            self._messages[None] = self._build_message(kind, self.version, content)
        return self._messages[None]

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that `restore` needs besides the codec, as arrays that safetensors and `np.savez` store."""
        state: dict[str, npt.NDArray[Any]] = {
            "version": np.array([self.version], np.int64),
            "vector": self.vector.astype(_DTYPES[self._grid]),
            "deltas": np.frombuffer(b"".join(delta.code for delta in self._deltas), np.uint8),
            "delta_sizes": np.array([len(delta.code) for delta in self._deltas], np.int64),
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
        """Restore from what `state` returned; the other arguments are those of the constructor.

        Raises:
            CodecError: The state is malformed, or of another grid.
        """
        try:
            if state["vector"].dtype != np.dtype(_DTYPES[grid]):
                raise CodecError(f"they are on a grid of {state['vector'].dtype}, not {grid}")
            versions = cls(state["vector"].astype(np.float32), layout_sha256, codec, feedback=feedback, grid=grid)
            if feedback and "residual" in state:
                versions._feedback = ErrorFeedback(versions.vector.size, residual=state["residual"])
            (versions.version,) = state["version"].tolist()
            deltas = Reader(memoryview(state["deltas"].tobytes()))
            for size in state["delta_sizes"].tolist():
                code = bytes(deltas.take(size))
                blob = Reader(memoryview(code))
                decoded = decode(blob.take(blob.varint()), size=versions.vector.size)
                blob.finish()
                versions._deltas.append(_Delta(code, decoded.work))
            deltas.finish()
            if versions.version < len(versions._deltas):
                raise CodecError(f"{len(versions._deltas)} deltas lead to version {versions.version}")
            versions._drop_old()
        except (KeyError, ValueError) as exc:
            raise CodecError(f"the stored model versions cannot be read: {exc}") from exc
        return versions

    def _set_version(self, version: int, vector: Vector) -> None:
        self._messages: dict[int | None, bytes] = {}  # by the node's version: many nodes get the same message
        vector.flags.writeable = False
        self.version = version
        self.vector = vector
        self.sha256 = vector_sha256(vector)

    def _drop_old(self) -> None:
        size, deltas = self.vector.size, self._deltas
        limit = size * np.dtype(_DTYPES[self._grid]).itemsize
        length, work = sum(len(delta.code) for delta in deltas), sum(delta.work for delta in deltas)
        while length >= limit or work > MAX_WORK * size or len(deltas) > MAX_DELTAS:
            oldest = deltas.popleft()
            length, work = length - len(oldest.code), work - oldest.work

    def _build_message(self, kind: int, start: int, *parts: bytes) -> bytes:
        head = bytes([_GRID_IDS[self._grid]]) + self._layout + bytes.fromhex(self.sha256)
        return wrap(DOWNLINK, kind, head, varint(start), varint(self.version), *parts)


class Replica:
    """A node's side: its copy of the model, updated by the server's messages.

    Args:
        version: Number of the node's version.
        vector: The node's model, shape (n,), float32; zeros for a new node, which applies a snapshot.
        layout_sha256: Hex SHA-256 of the layout; when given, messages for any other are refused.
        grid: Grid of the run; when given, messages on any other are refused.
        codec: Name of the codec of the run's deltas; when given, deltas by any other are refused.

    Attributes:
        version: Number of the node's version.
        vector: The node's model, shape (n,), float32, read-only.

    Raises:
        ValueError: The vector is empty or not finite, or the hash is malformed.
    """

    def __init__(
        self,
        version: int,
        vector: Vector,
        layout_sha256: str | None = None,
        *,
        grid: Grid | None = None,
        codec: str | None = None,
    ) -> None:
        self.version = version
        self.vector = check_vector(vector, "the model").copy()
        self.vector.flags.writeable = False
        self._layout = None if layout_sha256 is None else _layout_prefix(layout_sha256)
        self._grid, self._codec = grid, codec

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the vector, over n little-endian float32."""
        return vector_sha256(self.vector)

    def apply(self, blob: Blob) -> None:
        """Apply an untrusted message completely, or change nothing.

        Raises:
            VersionMismatch: The deltas start from another version, or from other bits, than this node's: ask for a
                snapshot.
            CodecError: The message is damaged or for another model.
        """
        kind, reader = unwrap(blob, DOWNLINK)
        if kind not in (_DELTAS, _SNAPSHOT, _CODED_SNAPSHOT):
            raise CodecError(f"a downlink message of unknown kind {kind}")
        (grid_id,) = reader.take(1)
        if grid_id not in _GRIDS:
            raise CodecError(f"a downlink message on unknown grid {grid_id}")
        if self._grid is not None and _GRIDS[grid_id] != self._grid:
            raise CodecError(f"a downlink message on the grid {_GRIDS[grid_id]}, and the run's is {self._grid}")
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
        """Apply deltas one by one to a copy of the vector, up to `version`."""
        size, count = self.vector.size, version - self.version
        if count < 0:
            raise CodecError(f"deltas that lead back from version {self.version} to {version}")
        if count > MAX_DELTAS:
            raise CodecError(f"a message of {count} deltas; the limit is {MAX_DELTAS}")
        if reader.remaining >= size * np.dtype(_DTYPES[grid]).itemsize:
            raise CodecError("the deltas are longer than a snapshot")
        vector, work = round_to_grid(self.vector, grid), 0
        for _ in range(count):
            update = decode(reader.take(reader.varint()), size=size, codec=self._codec)
            work += update.work
            if work > MAX_WORK * size:
                raise CodecError(f"the deltas take longer than {MAX_WORK} snapshots")
            _advance(vector, update, grid)
        reader.finish()
        return vector


def _advance(vector: Vector, update: Update, grid: Grid) -> None:
    """Move a vector on the grid to the next version, in place: the same additions and roundings at both ends.

    Elements that a sparse update does not touch are on the grid already, so the time depends on the values sent alone.
    """
    with np.errstate(over="ignore"):  # reported by round_to_grid
        update.add_to(vector, 1.0)
    if isinstance(update, SparseUpdate):
        vector[update.positions] = round_to_grid(vector[update.positions], grid, update.positions)
    else:
        vector[:] = round_to_grid(vector, grid)


def round_to_grid(vector: Vector, grid: Grid, positions: Positions | None = None) -> Vector:
    """Return `vector` with each value rounded to the grid, ties to even.

    Args:
        vector: Shape (k,), float32.
        grid: Float format to round to.
        positions: Positions of the values in the model, for the error; 0 to k - 1 without.

    Raises:
        CodecError: A magnitude is above `LARGEST`, or a value is NaN.
    """
    with np.errstate(over="ignore"):  # reported just below
        rounded = vector.astype(_DTYPES[grid]).astype(np.float32)
    _check_range(rounded, vector, grid, positions)
    return rounded


def _check_range(rounded: Vector, vector: Vector, grid: Grid, positions: Positions | None = None) -> None:
    fits = np.abs(rounded) <= LARGEST  # a NaN does not
    if not fits.all():
        index = int(np.argmin(fits))
        position = index if positions is None else int(positions[index])
        raise CodecError(f"the model holds {vector[index]} at position {position}, out of range of the {grid} grid")


def _read_snapshot(reader: Reader, size: int, grid: Grid, *, coded: bool) -> Vector:
    if coded and grid != "fp16":
        raise CodecError(f"a coded snapshot on the grid {grid}: only fp16 has one")
    vector: Vector = snapshots.unpack(reader, size) if coded else reader.array(_DTYPES[grid], size).astype(np.float32)
    reader.finish()
    _check_range(vector, vector, grid)
    return vector


def vector_sha256(vector: Vector) -> str:
    """Return the hex SHA-256 of a vector of shape (n,), over n little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(vector, "<f4").data).hexdigest()


def _layout_prefix(layout_sha256: str) -> bytes:
    """Return the first bytes of a hex SHA-256, which each message carries."""
    digest = bytes.fromhex(layout_sha256)
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError(f"a layout's SHA-256 has 64 hex digits, not {len(layout_sha256)}")
    return digest[:_LAYOUT_BYTES]
