"""What a run is made of, as the server sees it; what its nodes are told of it; and who may watch it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

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

if TYPE_CHECKING:  # else a server that measures nothing would wait for torch
    from fedglm.autoglm.tasks.evaluation import Evaluation

Row = dict[str, Any]


class Listener(Protocol):
    """Somebody who wants to see a run go by."""

    def resumed(self, rows: list[Row]) -> None:
        """The run goes on after the rounds in `rows`, which may be none."""

    def round_started(self, server_round: int, sampled: int) -> None:
        """A round begins with `sampled` nodes."""

    def plan_refused(self, node_id: int, reason: str) -> None:
        """A node's policy refuses the plan of the run, which goes on without it."""

    def rejected(self, node_id: int, reason: str) -> None:
        """A node may not take part: it is not enrolled, did not sign, or builds another model; the run goes on."""

    def reply_taken(self, server_round: int, node: str, fault: str | None) -> None:
        """A node's reply was folded in, or rejected for `fault`."""

    def round_done(self, rows: list[Row]) -> None:
        """A round has ended and is on disk; `rows` are the lines of `rounds.jsonl` so far."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is made of, as the server sees it.

    Attributes:
        federation: Rounds and participation.
        optimizer: Server optimizer and the schedule of the nodes' learning rate.
        spec: What nodes hold the server to; its rounds are the federation's.
        key: Signs the plan that the nodes are told.
        epsilon: Greatest privacy loss that any node's ledger shows by now; None where nobody may look.
        downlink: Codec towards the nodes.
        learning_rate: The nodes' learning rate before the schedule.
        layout: Names and shapes of what is federated.
        initial: float32 vector of version 0.
        evaluate: Measures a model vector; None leaves the loss out of the rows.
        reference: Measures what updates do to the model, by which `robust` leaves out what does harm; None without
            reference records.
        metric: `accuracy` or `perplexity`.
        checkpoints: Folder of the checkpoints.
        client_privacy: Protects whole nodes by noise of the server; None for none.
        sites: Public keys of the enrolled sites by name, which sign all that they send and of which some may be away
            for a while. None where the nodes are those that are connected, all of them, and sign nothing.
        log: Where the server keeps its signed log; None keeps none.
        anchors: Where the sites' logs stood in earlier runs; None where nobody keeps that.
        signed_on: When a site's node was started last, as `time.time`; what it was sent before is lost.
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

    def __post_init__(self) -> None:
        if self.spec.rounds != self.federation.rounds:
            raise ValueError(f"{self.spec.rounds} rounds are announced, and {self.federation.rounds} would be held")

    def signed(self, run: str) -> SignedPlan:
        """What nodes hold the run of that identity to, from the first round to the last."""
        announced = RunPlan(
            run=run,
            spec=self.spec,
            parameters=self.layout.size,
            layout=self.layout.sha256,
            model=vector_sha256(self.initial),
            code=code_sha256(),
        )
        return SignedPlan.sign(announced, self.key)
