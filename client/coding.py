"""From a local difference to the update that is sent, with what it leaves out kept for the next one."""

import numpy as np

from fedglm.client.state.node_state import NodeState, Pending
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
) -> Pending:
    """Add the residual to `delta`, code the sum, and hold back what the code leaves out until it is acknowledged.

    Args:
        state: Gives the residual and the round that it is of; it is not changed.
        delta: float32 vector, local weights minus `base`.
        base: float32 vector of the model that was trained from.
        server_round: The round that the update answers.
        settings: Codec and error feedback.
        layout: Names and shapes behind the vectors.
        attempt: Id of the attempt, by which the ledger knows it.
        rate: Learning rate of the round. Where it has fallen, the residual falls with it. None where it is not known.
        envelope: Bytes of the message around the update, which a budget has to hold too.

    Raises:
        CodecError: The budget is too small for any update.
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
    return Pending(server_round, vector_sha256(base), attempt, blob, residual, rate)
