"""The round loop: sample, send, aggregate each reply as it arrives, step, publish, checkpoint.

send       coded deltas from the node's version to the server's, or a snapshot where that is shorter
aggregate  each valid reply goes to the round's aggregator; invalid ones are rejected one by one, with the reason
step       the server optimizer computes a step from the mean
publish    the step is coded with the server's own error feedback, and the server adopts the decoded step
checkpoint a killed run resumes from it with the same bits
give       at the end each real site gets the final model, to keep
light      a light release of the model is made at the end, where the run asks for one
"""

import contextlib
import secrets
import threading
from collections.abc import Iterator

import numpy as np
from flwr.serverapp import Grid

from fedglm.core.clock import WALL_CLOCK, Clock
from fedglm.server.aggregation.aggregator import Aggregation
from fedglm.server.aggregation.choice import make_aggregation
from fedglm.server.rounds.admission import Admission
from fedglm.server.rounds.checkpoint import Checkpoint, load_latest
from fedglm.server.rounds.countersigning import Countersigning
from fedglm.server.rounds.exchange import Exchange
from fedglm.server.rounds.global_model import GlobalModel
from fedglm.server.rounds.light_handout import LightHandout
from fedglm.server.rounds.model_handout import ModelHandout
from fedglm.server.rounds.pacing import Pacing, SynchronousPacing
from fedglm.server.rounds.participants import FederationError, Participants
from fedglm.server.rounds.presence import Presence
from fedglm.server.rounds.round import Round, RoundContext
from fedglm.server.rounds.round_row import make_round_row
from fedglm.server.rounds.server_log import ServerLog
from fedglm.server.run_setup import Listener, Plan, Row


class Coordinator:
    """Runs a federation on a Flower grid.

    Args:
        plan: Plan of the run.
        grid: Flower grid of the nodes.
        listener: Is called for each event of the run.
        stop: Event that ends the run at the next poll for replies.
        resume: Whether to resume from the newest checkpoint; without any, the run starts.
        clock: Clock of the run.

    Raises:
        FederationError: The checkpoint is of another model.
        CheckpointError: All checkpoints are damaged.
        PrivacyError: The checkpoint's account of client-level privacy cannot be continued.
        LogError: The server's log is damaged, or not signed by this server.
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
        self._plan, self._listener, self._clock = plan, listener, clock
        self._exchange = Exchange(grid, stop or threading.Event(), clock=clock)
        checkpoint = load_latest(plan.checkpoints) if resume else None
        if checkpoint is not None:
            _check_resumed(plan, checkpoint)
        self._run = secrets.token_hex(8) if checkpoint is None else checkpoint.run
        self._rows: list[Row] = [] if checkpoint is None else checkpoint.rows
        self._known_participants = {} if checkpoint is None else checkpoint.participants
        self._model = GlobalModel(plan, checkpoint)
        self._pacing: Pacing = SynchronousPacing(
            plan.federation, clock, is_enrolled=plan.sites is not None, client_privacy=plan.client_privacy
        )
        self._aggregation: Aggregation = make_aggregation(
            plan.federation,
            size=plan.layout.size,
            folder=plan.checkpoints,
            codec=plan.spec.codec,
            adds_noise=plan.spec.noise.mechanism is not None,
            client_privacy=plan.client_privacy,
            reference=plan.reference,
            preview=self._model.preview,
        )
        if checkpoint is not None:
            self._aggregation.restore(checkpoint.aggregation)
        self._server_log = ServerLog(plan.log, plan.key, self._run)
        self._presence = Presence(plan, self._exchange, listener=listener, server_log=self._server_log)

    @property
    def vector(self) -> np.ndarray:
        """The published model, which every node holds or can rebuild; shape (n,), float32."""
        return self._model.vector

    @property
    def model_sha256(self) -> str:
        """Hex SHA-256 of the model, over its little-endian float32 values."""
        return self._model.sha256

    @property
    def rows(self) -> list[Row]:
        """Rows of `rounds.jsonl`, one for each finished round."""
        return self._rows

    def run(self) -> list[Row]:
        """Run all remaining rounds.

        Returns:
            Rows of `rounds.jsonl`, one for each finished round.

        Raises:
            FederationError: Too few nodes can take part, or too few updates of a round were accepted.
            Stopped: The stop event was set.
            StorageError: A checkpoint could not be written.
            PrivacyError: A round would exceed the budget of client-level privacy.
        """
        federation = self._plan.federation
        server_log = self._server_log
        server_log.record_start(self._plan.sign(self._run), len(self._rows))
        admission = Admission(
            self._exchange,
            self._plan,
            self._run,
            listener=self._listener,
            server_log=server_log,
            presence=self._presence,
        )
        with self._flushing_log():
            participants = admission.admit_initial(is_resumed=bool(self._rows))
        countersigning = Countersigning(self._exchange, self._plan, self._run, server_log)
        store = self._plan.light_store
        handout = None if store is None else LightHandout(self._exchange, self._plan, self._run, server_log, store)
        participants.restore(self._known_participants, strict=self._plan.sites is None)
        if not self._rows:
            self._checkpoint(participants)
        self._listener.resumed(self._rows)
        for number in range(len(self._rows) + 1, federation.rounds + 1):
            if self._rows:  # of the round before, also where that round's process was killed before it came to this
                self._release_light(participants, handout)
            with self._flushing_log():
                row = self._run_round(number, participants, admission)
            self._rows.append(row)
            server_log.record_round(row, self._model.sha256)
            self._checkpoint(participants)
            self._listener.round_done(self._rows)
            if number % federation.seal_every == 0:
                countersigning.seal(participants, number)
        self._release_light(participants, handout)
        if self._plan.gives_model:
            given = ModelHandout(self._exchange, self._plan, self._run, server_log, self._model.versions)
            given.offer(participants, self._rows)
        server_log.record_end(len(self._rows), self._model.sha256)
        for _ in range(2):  # the tree heads that sites send the first time are countersigned the second time
            countersigning.seal(participants, len(self._rows))
        return self._rows

    def _release_light(self, participants: Participants, handout: LightHandout | None) -> None:
        """Make and record the light release of the current model, where one is due, and offer sites what they lack."""
        done, rounds = len(self._rows), self._plan.federation.rounds
        is_due = done == rounds or done % (self._plan.light_every or rounds) == 0
        if is_due and self._plan.light is not None:
            outcome = self._plan.light.make(self._model.vector, done, self._model.sha256)
            self._server_log.record_light(outcome)
            if handout is not None:
                handout.keep(outcome)
        if handout is not None:
            handout.offer(participants, done)

    @contextlib.contextmanager
    def _flushing_log(self) -> Iterator[None]:
        """Write refusals and faults to the log also where the run ends because of them."""
        try:
            yield
        except FederationError:
            self._server_log.flush()
            raise

    def _run_round(self, number: int, participants: Participants, admission: Admission) -> Row:
        started = self._clock.monotonic()
        if self._plan.sites is not None:
            self._presence.look(participants, number)
        plan, eligible = self._plan, len(participants.active)
        window = self._pacing.open(number, participants)
        sampled = len(window.sampled)
        aggregator = self._aggregation.begin(self._rows, sampled=sampled, eligible=eligible)
        self._listener.round_started(number, sampled)
        context = RoundContext(
            self._exchange, participants, admission, self._listener, self._server_log, self._presence
        )
        done = Round(number, self._run, plan, self._model.versions, window, aggregator, context)
        done.conduct()
        _check_quorum(done, sampled, window.min_accepted)
        aggregate = aggregator.close()
        is_step_taken = self._model.publish(aggregate.mean, number)
        evaluation = plan.evaluate(self._model.vector) if plan.evaluate else None
        return make_round_row(
            plan,
            self._rows,
            done,
            sampled=sampled,
            contributions=aggregate.contributions,
            evaluation=evaluation,
            is_step_taken=is_step_taken,
            wall_s=self._clock.monotonic() - started,
        )

    def _checkpoint(self, participants: Participants) -> None:
        Checkpoint(
            run=self._run,
            round=len(self._rows),
            layout=self._plan.layout.sha256,
            participants=participants.state(),
            rows=self._rows,
            versions=self._model.versions.state(),
            optimizer=self._model.optimizer_state(),
            aggregation=self._aggregation.state(),
        ).save(self._plan.checkpoints)


def _check_resumed(plan: Plan, checkpoint: Checkpoint) -> None:
    if checkpoint.layout != plan.layout.sha256:
        raise FederationError(f"the checkpoint in {plan.checkpoints} is of another model: give the run's own scenario")
    if plan.client_privacy is not None:
        plan.client_privacy.check_resumed(checkpoint.rows, plan.checkpoints)


def _check_quorum(done: Round, sampled: int, min_accepted: int) -> None:
    if len(done.accepted) >= min_accepted:
        return
    reasons = sorted(set(done.faults.values()))
    reasons += [f"{name} is not connected" for name in done.absent] + [f"{name} was revoked" for name in done.revoked]
    raise FederationError(
        f"round {done.number}: {len(done.accepted)} of {sampled} updates were good, at least {min_accepted} are needed"
        + (f"; {reasons[0]}" if reasons else "")
    )
