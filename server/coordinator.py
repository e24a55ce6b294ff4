"""The round loop: sample, send what each node lacks, fold each reply in as it comes, step, publish, checkpoint.

sent      coded deltas from the node's version to the server's, or a snapshot where that is shorter
folded    every good reply into one fixed-point accumulator; bad ones are rejected singly, with the reason
stepped   the server optimizer turns the mean into a step
published the step is coded with the server's own error feedback, and the server adopts what it decodes to
kept      a checkpoint, from which a killed run goes on with the same bits
"""

import contextlib
import logging
import math
import secrets
import threading
from collections.abc import Iterator

import numpy as np
from flwr.serverapp import Grid

from fedglm.compression.codec import CodecError
from fedglm.compression.downlink import ModelVersions
from fedglm.core.clock import WALL_CLOCK, Clock
from fedglm.server.aggregation.fixed_point import FixedPointMean, public_weights
from fedglm.server.aggregation.folding import AtOnce, Check, Folding, Robust
from fedglm.server.aggregation.optimizers import make_server_optimizer
from fedglm.server.aggregation.reference_check import ReferenceCheck, groups_of
from fedglm.server.aggregation.robust import moved_on
from fedglm.server.rounds.admission import Admission
from fedglm.server.rounds.checkpoint import Checkpoint, load_latest
from fedglm.server.rounds.countersigning import Countersigning
from fedglm.server.rounds.exchange import Exchange
from fedglm.server.rounds.participants import FederationError, Participants
from fedglm.server.rounds.round import Round, RoundContext, envelope
from fedglm.server.rounds.server_log import ServerLog
from fedglm.server.run_setup import Listener, Plan, Row
from fedglm.server.settings import CLIP_FACTOR, CLIP_FACTOR_WITH_NOISE

LOG = logging.getLogger(__name__)


class Coordinator:
    """Runs a federation on a Flower grid.

    Args:
        plan: What to run.
        grid: The nodes.
        listener: Is told of each step.
        stop: Set it to end the run at the next look for replies.
        resume: Go on from the newest checkpoint; without one, begin.
        clock: By which all of the run waits.
    """

    def __init__(
        self,
        plan: Plan,
        grid: Grid,
        *,
        listener: Listener,
        stop: threading.Event | None = None,
        resume: bool = False,
        clock: Clock = WALL_CLOCK,
    ) -> None:
        self._plan, self._listener = plan, listener
        self._exchange = Exchange(grid, stop or threading.Event(), clock=clock)
        self._grid = grid
        codec = plan.downlink.make_codec(plan.layout, envelope=envelope(plan.layout))
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
        self._server_log = ServerLog(plan.log, plan.key, self._run)
        self._book = found.participants if found is not None else {}
        self._drift = None if found is None else found.drift

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
        server_log = self._server_log
        server_log.begun(self._plan.signed(self._run), len(self._rows))
        admission = Admission(self._exchange, self._plan, self._run, listener=self._listener, server_log=server_log)
        with self._noting():
            participants = admission.open()
        sealing = Countersigning(self._exchange, self._plan, self._run, server_log)
        participants.restore(self._book, strict=self._plan.sites is None)
        if not self._rows:
            self._checkpoint(participants)
        self._listener.resumed(self._rows)
        for number in range(len(self._rows) + 1, federation.rounds + 1):
            with self._noting():
                row = self._one_round(number, participants, admission)
            self._rows.append(row)
            server_log.published(row, self._versions.sha256)
            self._checkpoint(participants)
            self._listener.round_done(self._rows)
            if number % federation.seal_every == 0:
                sealing.seal(participants, number)
        server_log.finished(len(self._rows), self._versions.sha256)
        for _ in range(2):  # what the sites show at first is countersigned the second time
            sealing.seal(participants, len(self._rows))
        return self._rows

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Who refused, and why a round failed, is in the log even where the run ends by it."""
        try:
            yield
        except FederationError:
            self._server_log.flush()
            raise

    def _one_round(self, number: int, participants: Participants, admission: Admission) -> Row:
        started = self._exchange.clock.monotonic()
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
        context = RoundContext(self._exchange, participants, admission, self._listener, self._server_log)
        done = Round(number, self._run, plan, self._versions, sampled, self._folding(mean, number), context)
        done.conduct()
        self._check_quorum(done, len(sampled))
        whole = mean.mean()
        if self._looks_at_drift:
            self._drift = moved_on(self._drift, whole)
        is_taken = self._publish(whole, number)
        return self._row(done, len(sampled), started, is_taken)

    @property
    def _looks_at_drift(self) -> bool:
        """Only under noise, which is fresh each round; without, all nodes go on in one direction."""
        return self._is_robust and self._plan.spec.noise.mechanism is not None

    @property
    def _is_robust(self) -> bool:
        # What protects whole nodes clips by itself; a bound that depends on who else was drawn would break its promise.
        return self._plan.federation.aggregation == "robust" and self._plan.client_privacy is None

    def _folding(self, mean: FixedPointMean, number: int) -> Folding:
        plan, spec = self._plan, self._plan.spec
        if not self._is_robust:
            return AtOnce(mean)
        usual = CLIP_FACTOR if spec.noise.mechanism is None else CLIP_FACTOR_WITH_NOISE
        factor = plan.federation.clip_factor or usual
        return Robust(mean, plan.checkpoints, spec.codec, factor=factor, drift=self._drift, check=self._check(number))

    def _check(self, number: int) -> Check | None:
        losses, seed = self._plan.reference, self._plan.federation.seed
        if losses is None:
            return None
        check = ReferenceCheck(losses, self._versions, self._optimizer, self._fall(number), number)
        return Check(check, lambda names: groups_of(names, seed, number))

    def _publish(self, mean: np.ndarray, number: int) -> bool:
        """Make the next version of the mean; of one that would leave the weights' range, an unchanged one.

        Then nothing of the step, of earlier steps' rest and of the optimizer's memory is kept: asked again, the nodes
        would answer the same, and the run would end for all that one of them sent.

        Returns:
            Whether the step was taken.
        """
        try:
            self._versions.publish(self._optimizer.step(mean, number), self._fall(number))
            return True
        except (CodecError, ValueError):
            LOG.exception("round %d: the step leaves the range of weights; the model stays as it is", number)
            self._optimizer = make_server_optimizer(self._plan.optimizer)
            self._versions.publish(np.zeros_like(mean), scale=0.0)
            return False

    def _fall(self, number: int) -> float:
        """What the nodes' learning rate of a round is of the last one's, at most 1."""
        rate_at, rounds = self._plan.optimizer.rate_at, self._plan.federation.rounds
        return min(1.0, rate_at(number, rounds) / rate_at(number - 1, rounds)) if number > 1 else 1.0

    def _check_quorum(self, done: Round, sampled: int) -> None:
        least = self._plan.federation.min_accepted(sampled)
        # Whether a private round ends must not depend on who was drawn for it.
        if len(done.accepted) >= least or self._plan.client_privacy is not None:
            return
        reasons = sorted(set(done.faults.values()))
        raise FederationError(
            f"round {done.number}: {len(done.accepted)} of {sampled} updates were good, at least {least} are needed"
            + (f"; {reasons[0]}" if reasons else "")
        )

    def _row(self, done: Round, sampled: int, started: float, is_taken: bool) -> Row:
        measured = self._plan.evaluate(self._versions.vector) if self._plan.evaluate else None
        row: Row = {
            "round": done.number,
            "loss": measured.loss if measured else None,
            self._plan.metric: measured.metric if measured else None,
            "uplink_bytes": done.traffic.uplink,
            "downlink_bytes": done.traffic.downlink,
            "dense_uplink_bytes": done.traffic.dense_uplink,
            "dense_downlink_bytes": done.traffic.dense_downlink,
            "nodes_sampled": sampled,
            "nodes_accepted": len(done.accepted),
            "nodes_rejected": len(done.faults),
            "rejections": dict(sorted(done.faults.items())),
            "epsilon": self._plan.epsilon(),
        }
        if done.counted:
            row["counted"] = done.counted
        if done.metrics:
            # By counts that are bounded like declared ones, or one node's word would be the mean.
            counts = {str(index): int(entry["count"]) for index, entry in enumerate(done.metrics)}
            weights = public_weights(counts, self._plan.federation.weight_cap).values()
            losses = [entry["loss"] * weight for entry, weight in zip(done.metrics, weights, strict=True)]
            row["received_loss"] = math.fsum(losses) / math.fsum(weights)
        if not is_taken:
            row["step_taken"] = False
        private = self._plan.client_privacy
        row |= {"client_epsilon": None} if private is None else private.row(self._rows)
        row |= {"wall_s": round(self._exchange.clock.monotonic() - started, 3), "virtual_s": None}
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
            drift=self._drift,
        ).save(self._plan.checkpoints)
