"""Choice of the aggregation by the settings of a run."""

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
        federation: Settings that name the aggregation.
        size: Number of federated parameters.
        folder: Folder for the updates of a round until it closes.
        codec: Name of the codec of the updates.
        adds_noise: Whether nodes add noise to their updates.
        client_privacy: Client-level differential privacy; None without it.
        reference: Computes losses of models on reference records; None without such records.
        preview: Computes the models that a mean would lead to.
    """
    # Client-level privacy clips by itself; a bound that depends on who else was sampled would break its guarantee.
    if client_privacy is not None:
        return PrivateAggregation(size, client_privacy)
    if federation.aggregation == "mean":
        return MeanAggregation(size)
    return RobustAggregation(
        size,
        folder,
        codec,
        factor=federation.clip_factor or (CLIP_FACTOR_WITH_NOISE if adds_noise else CLIP_FACTOR),
        checks_drift=adds_noise,
        reference=reference,
        preview=preview,
        seed=federation.seed,
    )
