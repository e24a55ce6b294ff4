"""What a node has made, held to the run's plan before it leaves: size, form and noise."""

from dataclasses import replace

import numpy as np

from fedglm.compression.codec import CodecError, decode
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.errors import Refusal
from fedglm.privacy.policy.run_plan import RunPlan

HEADROOM = 4096
"""Bytes that a coded update may have over the dense float32 vector, for headers and scales."""


def check_update(blob: bytes, plan: RunPlan) -> int:
    """Refuse a coded update that is too long or does not decode as the plan says.

    Returns:
        Number of its values that are not zero.

    Raises:
        Refusal: Rule `size` or `well-formed`.
    """
    limit = 4 * plan.parameters + HEADROOM
    if len(blob) > limit:
        raise Refusal("size", f"the coded update has {len(blob)} bytes, at most {limit} may leave")
    try:
        update = decode(blob, size=plan.parameters, codec=plan.spec.codec)  # a value that is not finite does not decode
    except CodecError as exc:
        raise Refusal("well-formed", f"the coded update does not decode: {exc}") from exc
    values = getattr(update, "values", None)
    return int(np.count_nonzero(update.to_dense() if values is None else values))


def check_noise(rule: str, added: Mechanism | None, announced: Mechanism | None, plan: RunPlan) -> None:
    """Refuse what was noised in another way than the plan says, more noise apart.

    Args:
        rule: Name that a refusal bears.
        added: How it was noised; None for not at all.
        announced: What the plan says of it.
        plan: Of the run.

    Raises:
        Refusal: By `rule`.
    """
    if plan.spec.noise.mechanism is None and added is None:
        return
    if announced is None:
        raise Refusal(rule, "the plan announces no noise for this, and nothing leaves without")
    if added is None or added.noise_multiplier < announced.noise_multiplier:
        raise Refusal(rule, "what would leave has less noise than the plan says")
    if added != replace(announced, noise_multiplier=added.noise_multiplier):
        raise Refusal(rule, "what would leave was noised in another way than the plan says")
