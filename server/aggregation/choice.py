"""Which aggregation the settings of a run ask for."""

from pathlib import Path

from fedglm.server.aggregation.aggregator import Aggregation
from fedglm.server.aggregation.central_dp import ClientPrivacy
from fedglm.server.aggregation.mean import MeanAggregation, PrivateAggregation
from fedglm.server.aggregation.reference_check import Preview, ReferenceLosses
from fedglm.server.aggregation.robust_mean import RobustAggregation
from fedglm.server.settings import CLIP_FACTOR, CLIP_FACTOR_WITH_NOISE, FederationSettings


def make_aggregation(
    federation: FederationSettings,
    *,
    size: int,
    folder: Path,
    codec: str,
    adds_noise: bool,
    client_privacy: ClientPrivacy | None,
    reference: ReferenceLosses | None,
    preview: Preview,
) -> Aggregation:
    """Make the aggregation of a run.

    Args:
        federation: Names it.
        size: Number of federated parameters.
        folder: Where the updates of a round may be kept until it closes.
        codec: By which they are coded.
        adds_noise: Whether nodes add noise to their updates.
        client_privacy: Protects whole nodes; None for none.
        reference: Measures models on reference records; None without any.
        preview: The models that a mean would lead to.
    """
    # What protects whole nodes clips by itself; a bound that depends on who else was drawn would break its promise.
    if client_privacy is not None:
        return PrivateAggregation(size, client_privacy)
    if federation.aggregation == "mean":
        return MeanAggregation(size)
    return RobustAggregation(
        size,
        folder,
        codec,
        factor=federation.clip_factor or (CLIP_FACTOR_WITH_NOISE if adds_noise else CLIP_FACTOR),
        looks_at_drift=adds_noise,
        reference=reference,
        preview=preview,
        seed=federation.seed,
    )
