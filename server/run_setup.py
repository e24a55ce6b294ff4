"""The plan of a run at the server, the signed plan that its nodes get, and the interface of listeners."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from fedglm.autoglm.light.run_release.outcome import LightOutcome
from fedglm.compression.downlink import vector_sha256
from fedglm.compression.layout import Layout
from fedglm.compression.settings import DownlinkSettings
from fedglm.core.code_identity import code_sha256
from fedglm.privacy.keys.signing import PublicKey, SigningKey
from fedglm.privacy.policy.run_plan import RunPlan, SignedPlan
from fedglm.privacy.policy.run_spec import RunSpec
from fedglm.server.aggregation.central_dp import ClientPrivacy
from fedglm.server.aggregation.reference_check import ReferenceLosses
from fedglm.server.anchors import Anchors
from fedglm.server.settings import FederationSettings, ServerOptimizerSettings

if TYPE_CHECKING:  # else a server without evaluation would wait for the import of torch
    from fedglm.autoglm.tasks.evaluation import Evaluation

Row = dict[str, Any]
PresenceState = Literal["offline", "absent", "online"]
"""State of a site's node: not connected, not connected for so long that no round waits for it, connected again."""


class Listener(Protocol):
    """Interface for following a run; each method is called when its event happens."""

    def resumed(self, rows: list[Row]) -> None:
        """Called when the run starts or resumes; `rows` are those of the finished rounds, which may be none."""

    def round_started(self, server_round: int, sampled: int) -> None:
        """Called when a round starts with `sampled` nodes."""

    def sites_asked(self, server_round: int, sites: list[str]) -> None:
        """Called when enrolled sites were asked for their updates, at the start of a round or once they are back."""

    def presence_changed(self, server_round: int, site: str, state: PresenceState, since: float) -> None:
        """Called when an enrolled site is offline, absent or online again; `since` is in seconds since 1970 (UTC)."""

    def site_revoked(self, server_round: int, site: str, reason: str) -> None:
        """Called when a site's keys were revoked while the run goes on, which continues without it."""

    def plan_refused(self, node_id: int, reason: str, site: str | None = None) -> None:
        """Called when a node's policy refuses the plan of the run, which continues without it.

        `site` is the name of the site, where it is known.
        """

    def rejected(self, node_id: int, reason: str, site: str | None = None) -> None:
        """Called when a node may not take part (not enrolled, unsigned, another model, ...); the run continues.

        `site` is the name of the site, where it is known.
        """

    def reply_taken(self, server_round: int, node: str, fault: str | None) -> None:
        """Called when a node's update was aggregated (`fault` is None), or rejected for the reason in `fault`."""

    def round_done(self, rows: list[Row]) -> None:
        """Called when a round is finished and checkpointed; `rows` are the rows of `rounds.jsonl` so far."""


class LightReleases(Protocol):
    """Makes light releases of a run's models: `autoglm.light.run_release.maker.LightMaker`."""

    def make(self, vector: np.ndarray, server_round: int, model_sha256: str) -> LightOutcome:
        """Make the light release of a round's model, or say why there is none; it raises nothing."""


class KeptRelease(NamedTuple):
    """A light release that is kept for sites.

    Attributes:
        version: Its number in the federation.
        manifest: SHA-256 (hex) of its manifest.
    """

    version: int
    manifest: str


class LightReleaseStore(Protocol):
    """Keeps light releases for sites: `server.deployment.light_store.LightStore`."""

    def find_newest(self) -> KeptRelease | None:
        """Return the newest release that is kept, of whichever run; None where there is none."""

    def keep(self, release: KeptRelease) -> None:
        """Keep the run's newest release."""

    def pack(self, manifest: str, base: str) -> tuple[bytes, str | None]:
        """Return a release, by the SHA-256 (hex) of its manifest, for a site that holds `base`; and a delta's base."""

    def record_validation(self, site: str, version: int, signed: bytes) -> None:
        """Keep the file in which a site says how a release works there, whose signature was checked."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that the server needs for a run.

    Attributes:
        federation: Rounds and participation.
        optimizer: Server optimizer and the schedule of the nodes' learning rate.
        spec: Specification of the run that nodes check the server against; its number of rounds is the federation's.
        key: Signing key of the server, for the plan that the nodes get and for the log.
        downlink: Coding of the published models.
        learning_rate: Learning rate of the nodes, before the schedule.
        layout: Names and shapes of the federated parameters.
        initial: Version 0 of the model, shape (n,), float32.
        evaluate: Evaluates a model vector of shape (n,), float32; None leaves the loss out of the rows.
        metric: `accuracy` or `perplexity`.
        checkpoints: Folder of the checkpoints.
        reference: Computes losses on reference records, by which `robust` leaves out harmful updates; None without
            such records.
        epsilon: Returns the maximum privacy loss of any node's ledger so far; None where the ledgers are not readable.
        client_privacy: Client-level differential privacy; None without it.
        sites: Public keys of the enrolled sites by name; they sign all that they send, and may be away for a while.
            None where the nodes of the run are all connected nodes, and do not sign.
        log: Path of the server's signed log; None keeps none.
        anchors: Last known states of the sites' logs from earlier runs; None keeps none.
        last_activation: Returns the time at which a site's node was last started, in seconds since 1970 (UTC); messages
            sent to it before are lost.
        find_revoked: Returns the names of those of `sites` whose keys were revoked since the run started or resumed.
        find_site: Returns the name of the site that a Flower node id belongs to, as the SuperLink has authenticated it;
            None where it is not known.
        light: Makes the light release of the last model; None makes none.
        light_store: Keeps light releases for the sites, which get the newest, of whichever run; None hands none out.
        light_every: Number of rounds after which it makes one during the run too; None makes none then.
        gives_model: Whether the sites get the model that the run ends with, to keep.
        guarantee: Epsilon and delta of each unit at a site in the whole run; None without differential privacy.

    Raises:
        ValueError: `spec` and `federation` have different numbers of rounds.
    """

    federation: FederationSettings
    optimizer: ServerOptimizerSettings
    spec: RunSpec
    key: SigningKey
    downlink: DownlinkSettings
    learning_rate: float
    layout: Layout
    initial: np.ndarray
    evaluate: "Callable[[np.ndarray], Evaluation] | None"
    metric: str
    checkpoints: Path
    reference: ReferenceLosses | None = None
    epsilon: Callable[[], float | None] = lambda: None
    client_privacy: ClientPrivacy | None = None
    sites: Mapping[str, PublicKey] | None = None
    log: Path | None = None
    anchors: Anchors | None = None
    last_activation: Callable[[str], float] = lambda _: 0.0
    find_revoked: Callable[[], Collection[str]] = tuple
    find_site: Callable[[int], str | None] = lambda _: None
    light: LightReleases | None = None
    light_store: LightReleaseStore | None = None
    light_every: int | None = None
    gives_model: bool = False
    guarantee: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.spec.rounds != self.federation.rounds:
            raise ValueError(f"{self.spec.rounds} rounds are announced, and {self.federation.rounds} would be held")

    def sign(self, run: str) -> SignedPlan:
        """Sign the plan that nodes check the run against, from the first round to the last.

        Args:
            run: Identity of the run.
        """
        run_plan = RunPlan(
            run=run,
            spec=self.spec,
            parameters=self.layout.size,
            layout=self.layout.sha256,
            model=vector_sha256(self.initial),
            code=code_sha256(),
        )
        return SignedPlan.sign(run_plan, self.key)
