"""Coding of a local update with error feedback: what the code omits becomes the residual for the next update."""

import numpy as np

from fedglm.client.state.node_state import NodeState, PendingUpdate
from fedglm.compression.downlink import vector_sha256
from fedglm.compression.feedback import ErrorFeedback
from fedglm.compression.layout import Layout
from fedglm.compression.settings import UpdateSettings


def code_update(
    state: NodeState,
    delta: np.ndarray,
    base: np.ndarray,
    server_round: int,
    settings: UpdateSettings,
    layout: Layout,
    *,
    attempt: str,
    rate: float | None = None,
    envelope: int = 0,
) -> PendingUpdate:
    """Add the residual to `delta`, code the sum, and keep what the code omits until the update is acknowledged.

    Args:
        state: State with the residual and its round; it is not modified.
        delta: Local weights minus `base`, shape (size,), float32.
        base: Model that was trained from, shape (size,), float32.
        server_round: Number of the round that the update answers.
        settings: Codec and error feedback.
        layout: Names and shapes of the tensors behind the vectors.
        attempt: Id of the attempt in the ledger.
        rate: Learning rate of the round; where it has decreased, the residual is scaled down with it. None where it is
            unknown.
        envelope: Bytes of the message around the update, which a byte budget includes.

    Returns:
        The coded update and its residual; noise, evaluation and commitment are not set.

    Raises:
        CodecError: The byte budget is too small for any update.
    """
    feedback = ErrorFeedback(
        layout.size, decay=settings.residual_decay, drop_after=settings.residual_limit, residual=state.residual
    )
    missed = server_round - state.residual_round - 1 if state.residual is not None else 0
    scale = 1.0 if rate is None or not state.residual_rate else min(1.0, rate / state.residual_rate)
    codec = settings.make_codec(layout, envelope=envelope)
    blob = feedback.encode(codec, delta, rounds_missed=missed, scale=scale)
    residual = None
    if settings.feedback:
        feedback.commit()
        residual = feedback.residual
    return PendingUpdate(server_round, vector_sha256(base), attempt, blob, residual, rate)
