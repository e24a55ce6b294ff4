"""The round loop: sample, send what each node lacks, fold each reply in as it comes, step, publish, checkpoint.

sent      coded deltas from the node's version to the server's, or a snapshot where that is shorter
folded    every good reply into one fixed-point accumulator; bad ones are rejected singly, with the reason
stepped   the server optimizer turns the mean into a step
published the step is coded with the server's own error feedback, and the server adopts what it decodes to
kept      a checkpoint, from which a killed run goes on with the same bits
"""

import math
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import Grid

from fedglm.autoglm.tasks import Evaluation
from fedglm.compression.codec import CodecError
from fedglm.compression.downlink import HEADER, ModelVersions, vector_sha256
from fedglm.compression.layout import Layout
from fedglm.compression.messages import LENGTHS, MODEL, RECORD, Instruction
from fedglm.compression.settings import DownlinkSettings
from fedglm.privacy.code_identity import code_sha256
from fedglm.privacy.keys import SigningKey
from fedglm.privacy.ledger import BUDGET_RULE
from fedglm.privacy.mechanism import Mechanism
from fedglm.privacy.plan import RunPlan, SignedPlan
from fedglm.server.aggregation import FixedPointMean
from fedglm.server.checkpoint import Checkpoint, load_latest
from fedglm.server.client_privacy import ClientPrivacy
from fedglm.server.exchange import Exchange
from fedglm.server.inspection import GoodReply, inspect_reply
from fedglm.server.optimizers import make_server_optimizer
from fedglm.server.participants import FederationError, Participant, Participants, introduce, refusal_of
from fedglm.server.settings import FederationSettings, ServerOptimizerSettings

Row = dict[str, Any]


class Listener(Protocol):
    """Somebody who wants to see a run go by."""

    def resumed(self, rows: list[Row]) -> None:
        """The run goes on after the rounds in `rows`, which may be none."""

    def round_started(self, server_round: int, sampled: int) -> None:
        """A round begins with `sampled` nodes."""

    def plan_refused(self, node_id: int, reason: str) -> None:
        """A node's policy refuses the plan of the run, which goes on without it."""

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
        codec: Name of the codec of the nodes' updates.
        density: Share of the coordinates that it sends; None where it has no such number.
        local_steps: Optimizer steps of a node in a round.
        mechanism: How nodes add noise; None for none.
        turns: Most rounds that one node takes part in; None for all of them.
        noise_at_most: Most noise multiplier that is of use from a node with little budget left; None for no more than
            the mechanism's.
        metrics: How nodes add noise to what they measure; None for none.
        key: Signs the plan that the nodes are told.
        recipe: How nodes make model and training; empty where they know.
        epsilon: Greatest privacy loss that any node's ledger shows by now; None where nobody may look.
        downlink: Codec towards the nodes.
        learning_rate: The nodes' learning rate before the schedule.
        layout: Names and shapes of what is federated.
        initial: float32 vector of version 0.
        evaluate: Measures a model vector; None leaves the loss out of the rows.
        metric: `accuracy` or `perplexity`.
        checkpoints: Folder of the checkpoints.
        client_privacy: Protects whole nodes by noise of the server; None for none.
    """

    federation: FederationSettings
    optimizer: ServerOptimizerSettings
    codec: str
    density: float | None
    local_steps: int
    mechanism: Mechanism | None
    key: SigningKey
    downlink: DownlinkSettings
    learning_rate: float
    layout: Layout
    initial: np.ndarray
    evaluate: Callable[[np.ndarray], Evaluation] | None
    metric: str
    checkpoints: Path
    turns: int | None = None
    noise_at_most: float | None = None
    metrics: Mechanism | None = None
    recipe: str = ""
    epsilon: Callable[[], float | None] = lambda: None
    client_privacy: ClientPrivacy | None = None


@dataclass
class _Traffic:
    """Bytes of a round, as they lie in the messages, beside those of dense float32 for the same nodes."""

    uplink: int = 0
    downlink: int = 0
    dense_uplink: int = 0
    dense_downlink: int = 0


@dataclass
class _Round:
    """What is known while a round runs."""

    number: int
    mean: FixedPointMean
    traffic: _Traffic = field(default_factory=_Traffic)
    instructions: dict[int, Instruction] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)
    sent_again: set[str] = field(default_factory=set)
    faults: dict[str, str] = field(default_factory=dict)
    metrics: list[dict[str, float]] = field(default_factory=list)


class Coordinator:
    """Runs a federation on a Flower grid.

    Args:
        plan: What to run.
        grid: The nodes.
        listener: Is told of each step.
        stop: Set it to end the run at the next look for replies.
        resume: Go on from the newest checkpoint; without one, begin.
    """

    def __init__(
        self,
        plan: Plan,
        grid: Grid,
        *,
        listener: Listener,
        stop: threading.Event | None = None,
        resume: bool = False,
    ) -> None:
        self._plan, self._listener = plan, listener
        self._exchange = Exchange(grid, stop or threading.Event())
        self._grid = grid
        codec = plan.downlink.make_codec(plan.layout, envelope=_envelope(plan.layout))
        self._optimizer = make_server_optimizer(plan.optimizer)
        self._rows: list[Row] = []
        found = load_latest(plan.checkpoints) if resume else None
        if found is not None and found.layout != plan.layout.sha256:
            raise FederationError(
                f"the checkpoint in {plan.checkpoints} is of another model: give the run's own scenario"
            )
        if found is not None and plan.client_privacy is not None:
            plan.client_privacy.check_resumed(found.rows, plan.checkpoints)
        if found is None:
            self._run = secrets.token_hex(8)
            self._versions = ModelVersions(
                plan.initial, plan.layout.sha256, codec, feedback=plan.downlink.feedback, grid=plan.downlink.grid
            )
        else:
            self._run, self._rows = found.run, found.rows
            self._versions = ModelVersions.restore(
                found.versions, plan.layout.sha256, codec, feedback=plan.downlink.feedback, grid=plan.downlink.grid
            )
            self._optimizer.restore(found.optimizer)
        self._book = found.participants if found is not None else {}

    @property
    def vector(self) -> np.ndarray:
        """The model that every node holds or can rebuild; float32."""
        return self._versions.vector

    @property
    def model_sha256(self) -> str:
        """Hex SHA-256 of the model, over its little-endian float32 values."""
        return self._versions.sha256

    @property
    def rows(self) -> list[Row]:
        """One object for each round done."""
        return self._rows

    def run(self) -> list[Row]:
        """Run all rounds that are left.

        Raises:
            FederationError: The nodes cannot take part, or too few updates of a round were good.
            Stopped: The stop event was set.
            StorageError: A checkpoint could not be written.
        """
        federation = self._plan.federation
        participants = introduce(
            self._grid,
            self._exchange,
            plan=self._signed_plan().to_bytes(),
            run=self._run,
            layout=self._plan.layout.sha256,
            declared=federation.weighting == "declared",
            cap=federation.weight_cap,
            timeout_s=federation.round_timeout_s,
            refused=self._listener.plan_refused,
        )
        participants.restore(self._book)
        if not self._rows:
            self._checkpoint(participants)
        self._listener.resumed(self._rows)
        for number in range(len(self._rows) + 1, federation.rounds + 1):
            row = self._one_round(number, participants)
            self._rows.append(row)
            self._checkpoint(participants)
            self._listener.round_done(self._rows)
        return self._rows

    def _signed_plan(self) -> SignedPlan:
        """What nodes hold this run to, from the first round to the last."""
        plan, mechanism = self._plan, self._plan.mechanism
        return SignedPlan.sign(
            RunPlan(
                run=self._run,
                rounds=plan.federation.rounds,
                turns=plan.turns or plan.federation.rounds,
                local_steps=plan.local_steps,
                mechanism=mechanism,
                noise_at_most=plan.noise_at_most or (mechanism.noise_multiplier if mechanism else None),
                metrics=plan.metrics,
                codec=plan.codec,
                density=plan.density,
                parameters=plan.layout.size,
                layout=plan.layout.sha256,
                model=vector_sha256(plan.initial),
                recipe=plan.recipe,
                code=code_sha256(),
            ),
            plan.key,
        )

    def _one_round(self, number: int, participants: Participants) -> Row:
        started = time.monotonic()
        plan, federation = self._plan, self._plan.federation
        active = len(participants.active)
        if not active:
            raise FederationError(f"round {number}: the privacy budget of every site is spent; the last model stands")
        if plan.client_privacy is None:
            sampled = participants.sample(federation.cohort_size(active), federation.seed, number)
            mean = FixedPointMean(plan.layout.size, terms=len(sampled))
        else:
            sampled, mean = plan.client_privacy.begin(self._rows, participants.active, plan.layout.size)
        self._listener.round_started(number, len(sampled))
        state = _Round(number, mean)
        self._exchange.send(((m.node_id, self._content(state, m)) for m in sampled), "train", number)
        for node_id, reply in self._exchange.replies(federation.round_timeout_s):
            member = participants.of_node(node_id)
            if reply.has_content():
                state.traffic.uplink += recorddict_to_proto(reply.content).ByteSize()
            try:
                instruction = state.instructions[node_id]
                good = inspect_reply(reply, instruction, plan.layout.size, federation.norm_limit, plan.codec)
                self._fold(state, member, good)
            except CodecError as exc:
                if (reason := refusal_of(reply)) is not None and f"rule {BUDGET_RULE}:" in reason:
                    member.withdrawn = reason
                state.faults[member.name] = str(exc)
                self._listener.reply_taken(number, member.name, str(exc))
        for node_id in self._exchange.abandon():
            name = participants.of_node(node_id).name
            state.faults[name] = f"no reply within {federation.round_timeout_s:g} s"
            self._listener.reply_taken(number, name, state.faults[name])
        self._check_quorum(state, len(sampled))
        self._versions.publish(self._optimizer.step(state.mean.mean(), number), self._fall(number))
        return self._row(state, len(sampled), started)

    def _fall(self, number: int) -> float:
        """What the nodes' learning rate of a round is of the last one's, at most 1."""
        rate_at, rounds = self._plan.optimizer.rate_at, self._plan.federation.rounds
        return min(1.0, rate_at(number, rounds) / rate_at(number - 1, rounds)) if number > 1 else 1.0

    def _content(self, state: _Round, member: Participant, *, again: bool = False) -> RecordDict:
        """The message for one node: its instruction and what it lacks of the model."""
        versions, federation = self._versions, self._plan.federation
        rate = self._plan.optimizer.rate_at(state.number, federation.rounds)
        instruction = Instruction(
            run=self._run,
            round=state.number,
            nonce=secrets.token_hex(8),
            layout=self._plan.layout.sha256,
            version=versions.version,
            acknowledged=member.acknowledged,
            learning_rate=self._plan.learning_rate * rate,
            evaluate=federation.node_metrics,
            anchor=member.ledger,
        )
        state.instructions[member.node_id] = instruction
        blob = versions.frames_since(member.version)
        content = _content(instruction, blob)
        state.traffic.downlink += recorddict_to_proto(content).ByteSize()
        state.traffic.dense_downlink += 0 if again else 4 * self._plan.layout.size
        return content

    def _fold(self, state: _Round, member: Participant, good: GoodReply) -> None:
        if good.update is None:
            if member.version is None:
                raise CodecError("the node cannot rebuild the model from a snapshot")
            # After a lost reply the node is further on than the book says: deltas from where it is will do.
            holds = good.report.holds
            known = holds if holds is not None and holds >= 0 else None
            tried = known == member.version or member.name in state.sent_again
            member.version = None if tried else known
            state.sent_again.add(member.name)
            self._exchange.send([(member.node_id, self._content(state, member, again=True))], "train", state.number)
            return
        state.mean.add(good.update, member.weight)
        state.traffic.dense_uplink += 4 * self._plan.layout.size
        member.version, member.acknowledged = self._versions.version, state.number
        member.ledger = good.report.ledger
        state.accepted.append(member.name)
        if good.metrics:
            state.metrics.append(good.metrics)
        self._listener.reply_taken(state.number, member.name, None)

    def _check_quorum(self, state: _Round, sampled: int) -> None:
        least = self._plan.federation.least_accepted(sampled)
        # Whether a private round ends must not depend on who was drawn for it.
        if len(state.accepted) >= least or self._plan.client_privacy is not None:
            return
        reasons = sorted(set(state.faults.values()))
        raise FederationError(
            f"round {state.number}: {len(state.accepted)} of {sampled} updates were good, at least {least} are needed"
            + (f"; {reasons[0]}" if reasons else "")
        )

    def _row(self, state: _Round, sampled: int, started: float) -> Row:
        measured = self._plan.evaluate(self._versions.vector) if self._plan.evaluate else None
        row: Row = {
            "round": state.number,
            "loss": measured.loss if measured else None,
            self._plan.metric: measured.metric if measured else None,
            "uplink_bytes": state.traffic.uplink,
            "downlink_bytes": state.traffic.downlink,
            "dense_uplink_bytes": state.traffic.dense_uplink,
            "dense_downlink_bytes": state.traffic.dense_downlink,
            "nodes_sampled": sampled,
            "nodes_accepted": len(state.accepted),
            "nodes_rejected": len(state.faults),
            "rejections": dict(sorted(state.faults.items())),
            "epsilon": self._plan.epsilon(),
        }
        if state.metrics:
            count = math.fsum(entry["count"] for entry in state.metrics)
            row["received_loss"] = math.fsum(entry["loss"] * entry["count"] for entry in state.metrics) / count
        private = self._plan.client_privacy
        row |= {"client_epsilon": None} if private is None else private.row(self._rows)
        row |= {"wall_s": round(time.monotonic() - started, 3), "virtual_s": None}
        return row

    def _checkpoint(self, participants: Participants) -> None:
        Checkpoint(
            run=self._run,
            round=len(self._rows),
            layout=self._plan.layout.sha256,
            participants=participants.state(),
            rows=self._rows,
            versions=self._versions.state(),
            optimizer=self._optimizer.state(),
        ).save(self._plan.checkpoints)


def _content(instruction: Instruction, blob: bytes) -> RecordDict:
    return RecordDict({RECORD: ConfigRecord({**instruction.to_fields(), MODEL: blob})})


def _envelope(layout: Layout) -> int:
    """Most bytes that a message takes around the delta of one version."""
    most = Instruction(
        run="0" * 16,
        round=2**31 - 1,
        nonce="0" * 16,
        layout=layout.sha256,
        version=2**31 - 1,
        acknowledged=2**31 - 1,
        learning_rate=1.0,
        evaluate=True,
    )
    return int(recorddict_to_proto(_content(most, bytes(HEADER))).ByteSize()) + LENGTHS
