"""Error feedback: what a codec leaves out of one update is added to the next.

Seide et al., "1-bit SGD" (Interspeech 2014); Karimireddy et al., arXiv 1901.09847, algorithm 2.

    blob = feedback.encode(codec, delta)
    ...                                        # once the other end has acknowledged it:
    feedback.commit()

Where the other end applies something else than the decoded blob, in three steps:

    update = feedback.compensate(delta)
    blob = codec.encode(update)
    ...
    feedback.commit(applied)

Then `sent + residual == delta + factor * old residual`: exactly for each element that was not sent, and to the rounding
of one float32 subtraction for one that was. The factor is 1 unless rounds were missed or learning rates have fallen.
Until `commit` the residual is the old one, so an update that is lost in transit loses no mass of earlier rounds.

Under differential privacy the delta is clipped and noised before error feedback: a residual of un-noised data would let
one record leak over many rounds.
"""

from typing import Literal

import numpy as np

from fedglm.compression.codec import Codec, FusedCodec, Update
from fedglm.compression.vectors import Vector, check_vector


class ErrorFeedback:
    """The residual of one end.

    It owns two vectors, the residual and its successor, which swap at each `commit`, so that memory for a large model
    is allocated once. It returns copies.

    Args:
        size: Number of elements of the vector.
        decay: Factor on the residual for each round missed, from 0 to 1, since it was computed for an older model.
        drop_after: Number of missed rounds after which the residual is dropped; None keeps it.
        residual: Residual stored earlier, shape (size,), float32, finite; None starts from zero.

    Raises:
        ValueError: A setting is out of range, or the residual has another shape or is not finite.
    """

    def __init__(
        self, size: int, *, decay: float = 1.0, drop_after: int | None = None, residual: Vector | None = None
    ) -> None:
        if size < 1:
            raise ValueError(f"error feedback needs at least one element, not {size}")
        if not 0 <= decay <= 1:
            raise ValueError(f"decay is a number from 0 to 1, not {decay!r}")
        if drop_after is not None and drop_after < 0:
            raise ValueError(f"drop_after is a number of rounds from 0, not {drop_after!r}")
        self.size = size
        self.decay = decay
        self.drop_after = drop_after
        self._residual = (
            np.zeros(size, np.float32) if residual is None else check_vector(residual, "the residual", size).copy()
        )
        self._next = np.empty(size, np.float32)
        self._next_is: Literal["nothing", "the update", "what is left"] = "nothing"

    @property
    def residual(self) -> Vector:
        """Copy of what has not been sent so far, shape (size,), float32."""
        return self._residual.copy()

    def encode(self, codec: Codec, delta: Vector, rounds_missed: int = 0, scale: float = 1.0) -> bytes:
        """Code `delta + residual * scale * decay**rounds_missed`; what the code leaves out is kept by `commit()`.

        An earlier update that was not committed is dropped, as by `rollback`.

        Args:
            codec: Codec of the sum; the blob is that of `codec.encode`. A `FusedCodec` does all in one pass.
            delta: Shape (size,), float32.
            rounds_missed: Number of rounds without an update since the last one.
            scale: Further factor on the residual, from 0 to 1: as learning rates fall, so do the updates, and a
                residual of larger updates would dominate them.

        Raises:
            ValueError: The delta has another shape or is not finite; the residual is unchanged.
            CodecError: No code of the update fits the codec's budget; the residual is unchanged.
        """
        if isinstance(codec, FusedCodec):
            factor = self._factor(rounds_missed, scale)
            blob = codec.encode_compensated(delta, self._residual, factor, self._next)
        else:
            update = self.compensate(delta, rounds_missed, scale)
            self._next_is = "nothing"
            blob = codec.encode(update)
            self._subtract(codec.decode(blob, self.size))
        self._next_is = "what is left"
        return blob

    def compensate(self, delta: Vector, rounds_missed: int = 0, scale: float = 1.0) -> Vector:
        """Return `delta + residual * scale * decay**rounds_missed`, shape (size,), float32, for the codec.

        An earlier update that was not committed is dropped, as by `rollback`.

        Args:
            delta: Shape (size,), float32.
            rounds_missed: Number of rounds without an update since the last one.
            scale: See `encode`.

        Raises:
            ValueError: The delta has another shape or is not finite; the residual is unchanged.
        """
        factor = self._factor(rounds_missed, scale)
        delta = check_vector(delta, "the delta", self.size)
        np.multiply(self._residual, factor, out=self._next)
        with np.errstate(over="ignore"):  # reported just below
            np.add(delta, self._next, out=self._next)
        check_vector(self._next, "the delta with its residual")
        self._next_is = "the update"
        return self._next.copy()

    def commit(self, sent: Update | Vector | None = None) -> None:
        """Make what the last update left out the new residual.

        Args:
            sent: After `compensate`, what the other end decoded or applied; None after `encode`, which knows it.

        Raises:
            RuntimeError: There is no update to commit.
            TypeError: `sent` was given after `encode`, or None after `compensate`; nothing is changed.
            ValueError: `sent` has another size, and nothing is changed; or it is not finite, and the residual is the
                old one and the update is dropped.
        """
        if self._next_is == "nothing":
            raise RuntimeError("nothing to commit: call compensate or encode first")
        if (sent is None) != (self._next_is == "what is left"):
            raise TypeError("commit takes what was sent after compensate, and nothing after encode")
        if sent is not None:
            self._subtract(sent)
        self._residual, self._next = self._next, self._residual
        self._next_is = "nothing"

    def rollback(self) -> None:
        """Drop the last update, which did not arrive; the residual stays the one before it."""
        self._next_is = "nothing"

    def _factor(self, rounds_missed: int, scale: float) -> np.float32:
        """Return the factor on the residual, and mark the next vector as unused."""
        if rounds_missed < 0:
            raise ValueError(f"rounds_missed is a number from 0, not {rounds_missed!r}")
        if not 0 <= scale <= 1:
            raise ValueError(f"scale is a number from 0 to 1, not {scale!r}")
        self._next_is = "nothing"
        dropped = self.drop_after is not None and rounds_missed > self.drop_after
        return np.float32(0 if dropped else scale * self.decay**rounds_missed)

    def _subtract(self, sent: Update | Vector) -> None:
        """Subtract `sent` from the update in the next vector."""
        if sent.size != self.size:
            raise ValueError(f"what was sent has {sent.size} elements, not {self.size}")
        self._next_is = "nothing"
        with np.errstate(over="ignore", invalid="ignore"):  # reported just below
            if isinstance(sent, np.ndarray):
                self._next -= sent
            else:
                sent.add_to(self._next, -1.0)
        check_vector(self._next, "the residual after what was sent")
