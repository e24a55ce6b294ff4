"""Error feedback: what a coder leaves out of one update is added to the next.

Seide et al., "1-bit SGD" (Interspeech 2014); Karimireddy et al., arXiv 1901.09847, algorithm 2.

    update = feedback.compensate(delta)
    blob = codec.encode(update)
    ...                                        # once the other end has acknowledged it:
    feedback.commit(codec.decode(blob, update.size))

Then `sent + residual == delta + old residual`: exactly for every element that was not sent, and to the rounding of one
float32 subtraction for one that was. Until `commit` the residual is the old one, so an update that is lost on its way
loses no mass of earlier rounds.

Under differential privacy the delta is clipped and noised before it comes here: a residual of un-noised data would let
one record leak over many rounds.
"""

import numpy as np

from fedglm.compression.codec import Update
from fedglm.compression.vectors import Vector, checked


class ErrorFeedback:
    """One end's residual.

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
        self._update: Vector | None = None

    @property
    def residual(self) -> Vector:
        """What has not been sent so far, shape (size,), float32; a read-only view, replaced by `commit`."""
        return _read_only(self._residual)

    def compensate(self, delta: Vector, rounds_missed: int = 0) -> Vector:
        """Return `delta + residual * decay**rounds_missed`, to be coded; read-only.

        An earlier update that was not committed is forgotten, as by `rollback`.

        Args:
            delta: shape (size,), float32.
            rounds_missed: rounds that passed since the last update without one.

        Raises:
            ValueError: a delta of another shape or not finite; the residual is untouched.
        """
        if rounds_missed < 0:
            raise ValueError(f"rounds_missed is a number from 0, not {rounds_missed!r}")
        update = checked(delta, "the delta", self.size).copy()
        if self.drop_after is None or rounds_missed <= self.drop_after:
            with np.errstate(over="ignore"):  # reported just below
                update += self._residual * np.float32(self.decay**rounds_missed)
            checked(update, "the delta with its residual")
        self._update = update
        return _read_only(update)

    def commit(self, sent: Update | Vector) -> None:
        """Keep as the new residual what `sent` left out of the last update.

        Args:
            sent: what the other end decoded, or applied.

        Raises:
            RuntimeError: no update to commit.
            ValueError: `sent` has another shape or is not finite; nothing is changed.
        """
        if self._update is None:
            raise RuntimeError("nothing to commit: call compensate first")
        if sent.size != self.size:
            raise ValueError(f"what was sent has {sent.size} elements, not {self.size}")
        residual = self._update.copy()
        with np.errstate(over="ignore", invalid="ignore"):  # reported just below
            if isinstance(sent, np.ndarray):
                residual -= sent
            else:
                sent.add_to(residual, -1.0)
        self._residual = checked(residual, "the residual after what was sent")
        self._update = None

    def rollback(self) -> None:
        """Forget the last update, which did not arrive; the residual stays what it was before `compensate`."""
        self._update = None


def _read_only(vector: Vector) -> Vector:
    view = vector.view()
    view.flags.writeable = False
    return view
