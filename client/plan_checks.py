"""Checks of a node's result against the run's plan before it leaves: size, form and noise."""

from dataclasses import replace

import numpy as np

from fedglm.compression.codec import CodecError, decode
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.errors import Refusal
from fedglm.privacy.policy.run_plan import RunPlan

MAX_OVERHEAD_BYTES = 4096
"""Maximum size of a coded update beyond the dense float32 vector, in bytes: headers and scales."""


def check_update(blob: bytes, plan: RunPlan) -> int:
    """Check that a coded update is not too long and decodes as the plan says.

    Args:
        blob: The coded update.
        plan: The run's plan.

    Returns:
        Number of nonzero values in the update.

    Raises:
        Refusal: Rule `size` or `well-formed`.
    """
    limit = 4 * plan.parameters + MAX_OVERHEAD_BYTES
    if len(blob) > limit:
        raise Refusal("size", f"the coded update has {len(blob)} bytes, at most {limit} may leave")
    try:
        update = decode(blob, size=plan.parameters, codec=plan.spec.codec)  # a value that is not finite does not decode
    except CodecError as exc:
        raise Refusal("well-formed", f"the coded update does not decode: {exc}") from exc
    values = getattr(update, "values", None)
    return int(np.count_nonzero(update.to_dense() if values is None else values))


def check_noise(rule: str, added: Mechanism | None, announced: Mechanism | None, plan: RunPlan) -> None:
    """Check that values were noised as the plan says; more noise is permitted.

    Args:
        rule: Name of the rule, for a refusal.
        added: Mechanism that added the noise; None for no noise.
        announced: Mechanism in the plan; None where the plan announces none.
        plan: The run's plan.

    Raises:
        Refusal: Rule `rule`: the noise is missing, less than in the plan, or of another mechanism.
    """
    if plan.spec.noise.mechanism is None and added is None:
        return
    if announced is None:
        raise Refusal(rule, "the plan announces no noise for this, and nothing leaves without")
    if added is None or added.noise_multiplier < announced.noise_multiplier:
        raise Refusal(rule, "what would leave has less noise than the plan says")
    if added != replace(announced, noise_multiplier=added.noise_multiplier):
        raise Refusal(rule, "what would leave was noised in another way than the plan says")
