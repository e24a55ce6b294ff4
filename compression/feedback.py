"""Error feedback: what a coder leaves out of one update is added to the next.

Seide et al., "1-bit SGD" (Interspeech 2014); Karimireddy et al., arXiv 1901.09847, algorithm 2.

    blob = feedback.encode(codec, delta)
    ...                                        # once the other end has acknowledged it:
    feedback.commit()

Where what the other end applies is not just the decoded blob, in three steps:

    update = feedback.compensate(delta)
    blob = codec.encode(update)
    ...
    feedback.commit(applied)

Then `sent + residual == delta + factor * old residual`: exactly for each element that was not sent, and to the rounding
of one float32 subtraction for one that was. The factor is 1 unless rounds were missed or learning rates have fallen.
Until `commit` the residual is the old one, so an update that is lost on its way loses no mass of earlier rounds.

Under differential privacy the delta is clipped and noised before it comes here: a residual of un-noised data would let
one record leak over many rounds.
"""

from typing import Literal

import numpy as np

from fedglm.compression.codec import Codec, FusedCodec, Update
from fedglm.compression.vectors import Vector, checked


class ErrorFeedback:
    """One end's residual.

    It owns two vectors, the residual and the one that is to take its place, which change roles at each `commit`: memory
    for a large model is taken once. What it hands out are copies.

    Args:
        size: elements of the vector.
        decay: factor on the residual for each round missed, from 0 to 1; it was computed for a model that has moved on.
        drop_after: a residual that missed more rounds than this is dropped; None keeps it.
        residual: shape (size,), float32, finite: one stored earlier; None starts from zero.

    Raises:
        ValueError: a setting out of range, or a residual of another shape or not finite.
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
            np.zeros(size, np.float32) if residual is None else checked(residual, "the residual", size).copy()
        )
        self._next = np.empty(size, np.float32)
        self._next_is: Literal["nothing", "the update", "what is left"] = "nothing"

    @property
    def residual(self) -> Vector:
        """A copy of what has not been sent so far, shape (size,), float32."""
        return self._residual.copy()

    def encode(self, codec: Codec, delta: Vector, rounds_missed: int = 0, scale: float = 1.0) -> bytes:
        """Code `delta + residual * scale * decay**rounds_missed`; what the code leaves out waits for `commit()`.

        An earlier update that was not committed is forgotten, as by `rollback`.

        Args:
            codec: codes the sum; the blob is that of `codec.encode`. A `FusedCodec` takes one pass for all.
            delta: shape (size,), float32.
            rounds_missed: rounds that passed since the last update without one.
            scale: what else the residual is worth by now, from 0 to 1: as learning rates fall, so do the updates, and a
                residual of larger ones would drown them.

        Raises:
            ValueError: a delta of another shape or not finite; the residual is untouched.
            CodecError: a budget of the codec's that no code of the update fits; the residual is untouched.
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
        """Return `delta + residual * scale * decay**rounds_missed`, to be coded.

        An earlier update that was not committed is forgotten, as by `rollback`.

        Args:
            delta: shape (size,), float32.
            rounds_missed: rounds that passed since the last update without one.
            scale: see `encode`.

        Raises:
            ValueError: a delta of another shape or not finite; the residual is untouched.
        """
        factor = self._factor(rounds_missed, scale)
        delta = checked(delta, "the delta", self.size)
        np.multiply(self._residual, factor, out=self._next)
        with np.errstate(over="ignore"):  # reported just below
            np.add(delta, self._next, out=self._next)
        checked(self._next, "the delta with its residual")
        self._next_is = "the update"
        return self._next.copy()

    def commit(self, sent: Update | Vector | None = None) -> None:
        """Keep as the new residual what was left out of the last update.

        Args:
            sent: after `compensate`, what the other end decoded, or applied; after `encode` nothing, for that is known.

        Raises:
            RuntimeError: no update to commit.
            TypeError: `sent` after `encode`, or none after `compensate`; nothing is changed.
            ValueError: `sent` has another size; nothing is changed. Or it is not finite; the residual is the old one
                and the update is forgotten.
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
        """Forget the last update, which did not arrive; the residual stays what it was before."""
        self._next_is = "nothing"

    def _factor(self, rounds_missed: int, scale: float) -> np.float32:
        """What is left of the residual; from here on the next vector holds nothing."""
        if rounds_missed < 0:
            raise ValueError(f"rounds_missed is a number from 0, not {rounds_missed!r}")
        if not 0 <= scale <= 1:
            raise ValueError(f"scale is a number from 0 to 1, not {scale!r}")
        self._next_is = "nothing"
        dropped = self.drop_after is not None and rounds_missed > self.drop_after
        return np.float32(0 if dropped else scale * self.decay**rounds_missed)

    def _subtract(self, sent: Update | Vector) -> None:
        """Turn the update in the next vector into what `sent` leaves out of it."""
        if sent.size != self.size:
            raise ValueError(f"what was sent has {sent.size} elements, not {self.size}")
        self._next_is = "nothing"
        with np.errstate(over="ignore", invalid="ignore"):  # reported just below
            if isinstance(sent, np.ndarray):
                self._next -= sent
            else:
                sent.add_to(self._next, -1.0)
        checked(self._next, "the residual after what was sent")
