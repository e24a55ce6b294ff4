"""An edge node: what happens between an instruction that comes in and an update that may go out.

The node knows nothing of the transport. It holds its data, rebuilds the model from the downlink, trains, codes the
difference with error feedback, and keeps its memory on its own disk. The order of the steps is the guarantee: state is
written before anything is handed to the outbound gate, and the residual is committed only once the server has said, in
its next instruction, that it folded the update in.

Whatever is made from data is one attempt, with an id: its answer is kept, and given again when the server asks again.
So is an attempt that failed. What went wrong follows from data and noise: it stays here, and the ledger is charged.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.models.parameters import load_vector
from fedglm.autoglm.settings import LocalTrainingSettings
from fedglm.autoglm.tasks.evaluation import Evaluation
from fedglm.autoglm.training.local import TrainingError, round_seed, train_locally
from fedglm.autoglm.training.precision import ChosenPrecision, choose_precision, torch_device
from fedglm.client.coding import code_update
from fedglm.client.private_training import evaluate_privately, train_privately
from fedglm.client.state.node_state import Measured, NodeState, Pending
from fedglm.compression.codec import CodecError
from fedglm.compression.downlink import Replica
from fedglm.compression.settings import UpdateSettings
from fedglm.core.files import StorageError
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.errors import PrivacyError, Refusal
from fedglm.privacy.keys.vault import Vault
from fedglm.privacy.ledger.charges import make_attempt_id
from fedglm.protocol.federated_model import FederatedModel
from fedglm.protocol.messages import JoinReply, TrainReply, TrainRequest


@dataclass(frozen=True)
class LocalResult:
    """What a node has to say after an instruction, before the gate has looked at it.

    Attributes:
        report: The answer's fields.
        attempt: Id of the attempt that met data; None where none was looked at.
        purposes: What the attempt was for: see `privacy.log.entries.PURPOSES`.
        failure: Why nothing came of the attempt, for the site's own log; None where something did.
        blob: Coded update, or None.
        evaluation: Measures of the *received* model on held-out data, or None.
        noise: How the update was noised; None for not at all.
        evaluation_noise: How the measures were noised.
    """

    report: TrainReply
    blob: bytes | None = None
    evaluation: Evaluation | None = None
    noise: Mechanism | None = None
    evaluation_noise: Mechanism | None = None
    attempt: str | None = None
    purposes: tuple[str, ...] = ()
    failure: Exception | None = None


@dataclass(frozen=True)
class Authorization:
    """What the outbound gate lets a node do for an instruction.

    Attributes:
        mechanism: How noise is added to the update; None where none is.
        metrics: How noise is added to measures of the received model; None where none is.
        declared_units: Number of units that the site makes public, which noised sums are divided by.
        check_budget: Raises `Refusal` where the ledger has too little left for a fresh answer.
        has_charged: Whether the ledger was charged for the update of an attempt, which alone may have left.
        model: SHA-256 (hex) of the weights that the run starts from; None where nobody has said.
        commitment: Of the site's data set, as the ledger knows it.
    """

    mechanism: Mechanism | None
    metrics: Mechanism | None
    declared_units: int
    check_budget: Callable[[], None]
    has_charged: Callable[[str], bool]
    model: str | None = None
    commitment: str = ""


class Node:
    """One participant of a federation.

    Args:
        name: Unique in the federation.
        model: Model and task.
        train: The node's training data.
        held_out: Data that the node measures received models on.
        training: Steps, batch, optimizer, precision.
        update: Codec and error feedback.
        folder: Where the node keeps its state; it is made when first needed.
        seed: The experiment's seed; it orders the data and nothing else.
        declared: Number of examples that the site makes public, as its weight; 0 for none.
        envelope: Bytes of the message around an update, which `update.max_ratio` counts too.
        vault: Encrypts the state at rest; None for none.
    """

    def __init__(
        self,
        name: str,
        model: FederatedModel,
        *,
        train: Examples,
        held_out: Examples,
        training: LocalTrainingSettings,
        update: UpdateSettings,
        folder: Path,
        seed: int,
        declared: int = 0,
        envelope: int = 0,
        vault: Vault | None = None,
    ) -> None:
        self.name = name
        self._vault = vault
        self.folder = folder
        self._model = model
        self._train, self._held_out = train, held_out
        self._training, self._update = training, update
        self._seed = seed
        self._declared = declared
        self._envelope = envelope

    def introduce(self) -> JoinReply:
        """Say who this is and what it holds."""
        state = NodeState.load(self.folder, self._model.layout.size, vault=self._vault)
        return JoinReply(
            name=self.name,
            run=state.run,
            version=state.version,
            layout=self._model.layout.sha256,
            examples=self._declared,
        )

    def train(self, instruction: TrainRequest, downlink: bytes, permit: Authorization) -> LocalResult:
        """Rebuild the model that the server means, train on it, and code the difference.

        Raises:
            Refusal: The instruction is not of the plan, or the ledger has too little left for another update.
            StateError, StorageError: The node's disk is damaged or full.
            PrecisionError: The device cannot train so.
        """
        if not instruction.learning_rate <= self._training.learning_rate:
            said = f"the learning rate {instruction.learning_rate:g}, and the plan has {self._training.learning_rate:g}"
            raise Refusal("plan", f"the instruction asks for {said} at most")
        state = self._load(instruction, permit)
        replica = self._receive(state, instruction, downlink, permit)
        if replica is None:
            return LocalResult(TrainReply(nonce=instruction.nonce, holds=state.version))
        precision = self._precision(permit)
        pending, failure = state.pending, None
        if pending is None or (pending.round, pending.base_sha256) != (instruction.round, replica.sha256):
            permit.check_budget()
            pending, failure = self._attempt_update(instruction, state, replica, permit, precision)
        else:  # asked again for a round that this node has trained: the very same bytes and numbers
            state.save(self.folder)
        measures = pending.measured is not None or pending.measured_noise is not None
        return LocalResult(
            TrainReply(nonce=instruction.nonce),
            pending.blob,
            pending.measured,
            pending.noise,
            pending.measured_noise,
            pending.attempt,
            ("update", "metrics") if measures else ("update",),
            failure or (None if pending.blob is not None else TrainingError("the attempt failed when it was made")),
        )

    def evaluate(self, instruction: TrainRequest, downlink: bytes, permit: Authorization) -> LocalResult:
        """Rebuild the model that the server means and measure it on the node's held-out data.

        Raises:
            Refusal: The instruction is not of the plan, or the ledger has too little left for further measures.
            StateError, StorageError: The node's disk is damaged or full.
        """
        state = self._load(instruction, permit)
        replica = self._receive(state, instruction, downlink, permit)
        if replica is None:
            return LocalResult(TrainReply(nonce=instruction.nonce, holds=state.version))
        known, failure = state.measured, None
        if known is None or (known.round, known.base_sha256) != (instruction.round, replica.sha256):
            permit.check_budget()
            known, failure = self._attempt_measures(instruction, state, replica, permit)
        else:
            state.save(self.folder)
        return LocalResult(
            TrainReply(nonce=instruction.nonce),
            evaluation=known.evaluation,
            evaluation_noise=known.noise,
            attempt=known.attempt,
            purposes=("metrics",),
            failure=failure or (None if known.evaluation else TrainingError("the attempt failed when it was made")),
        )

    def _load(self, instruction: TrainRequest, permit: Authorization) -> NodeState:
        """The node's memory of this run, with the residual that the server has acknowledged by now.

        A server can acknowledge what it never had, as where the node was killed before it charged for it. The residual
        of such an update stays away from later ones, for their charges pay for their own noise alone; and what has no
        noise stays away from updates that have.
        """
        if instruction.layout != self._model.layout.sha256:
            raise CodecError(
                f"node {self.name} builds another model (layout {self._model.layout.sha256[:12]}) than the server "
                f"({instruction.layout[:12]}): give both the same [model] and [data]"
            )
        state = NodeState.load(self.folder, self._model.layout.size, run=instruction.run, vault=self._vault)
        left = state.pending is not None and permit.has_charged(state.pending.attempt)
        state.settle(instruction.acknowledged if left else 0, instruction.round)
        # An answer that was not charged for yet would be, for data that it was not made from.
        if state.pending is not None and not left and state.pending.commitment != permit.commitment:
            state.pending = None
        if state.measured is not None and state.measured.commitment != permit.commitment:
            state.measured = None
        if permit.mechanism is not None and not state.residual_noised:
            state.residual, state.residual_round, state.residual_rate = None, 0, None
        return state

    def _receive(
        self, state: NodeState, instruction: TrainRequest, downlink: bytes, permit: Authorization
    ) -> Replica | None:
        """Bring the stored model to the instruction's version; None when that takes a snapshot.

        Raises:
            Refusal: Rule `models`: version 0 has not the hash that the plan has, and that the policy was asked about.
        """
        if state.base is None:
            # Version 0 is the initialisation, which both ends compute for themselves; the blob holds its hash.
            state.version, state.base = 0, self._model.initial
        replica = Replica(
            state.version,
            state.base,
            self._model.layout.sha256,
            grid=self._model.downlink.grid,
            codec=self._model.downlink.codec,
        )
        try:
            replica.apply(downlink)
        except CodecError:
            return None
        if replica.version != instruction.version:
            return None
        if replica.version == 0 and permit.model not in (None, replica.sha256):
            raise Refusal("models", "the run starts from other weights than its plan names")
        state.version, state.base = replica.version, replica.vector
        return replica

    def _attempt_update(
        self,
        instruction: TrainRequest,
        state: NodeState,
        replica: Replica,
        permit: Authorization,
        precision: ChosenPrecision,
    ) -> tuple[Pending, Exception | None]:
        """Make an update and keep it; of one that cannot be made, keep that it failed."""
        attempt = make_attempt_id()
        try:
            state.pending = self._make_update(instruction, state, replica, permit, precision, attempt)
            state.save(self.folder)
        except Exception as exc:
            noises = permit.mechanism, permit.metrics if instruction.evaluate else None
            state.pending = Pending(
                instruction.round,
                replica.sha256,
                attempt,
                None,
                None,
                noise=noises[0],
                measured_noise=noises[1],
                commitment=permit.commitment,
            )
            self._keep_failure(state, exc)
            return state.pending, exc
        return state.pending, None

    def _attempt_measures(
        self, instruction: TrainRequest, state: NodeState, replica: Replica, permit: Authorization
    ) -> tuple[Measured, Exception | None]:
        """Measure and keep what came of it; of measures that cannot be made, keep that they failed."""
        failure, noise = None, permit.metrics
        failed = Measured(instruction.round, replica.sha256, make_attempt_id(), None, noise, permit.commitment)
        try:
            state.measured = replace(failed, evaluation=self._evaluate(replica.vector, permit))
            state.save(self.folder)
        except Exception as exc:
            failure, state.measured = exc, failed
            self._keep_failure(state, exc)
        return state.measured, failure

    def _keep_failure(self, state: NodeState, exc: Exception) -> None:
        """Keep that an attempt failed, unless that was the disk: then it is made, and charged for, once more."""
        if not isinstance(exc, StorageError):
            with contextlib.suppress(StorageError):
                state.save(self.folder)

    def _make_update(
        self,
        instruction: TrainRequest,
        state: NodeState,
        replica: Replica,
        permit: Authorization,
        precision: ChosenPrecision,
        attempt: str,
    ) -> Pending:
        base = replica.vector
        measured = self._evaluate(base, permit) if instruction.evaluate else None
        delta = self._trained(instruction, base, permit, precision)
        # From here on nothing looks at the data: what is selected and coded follows from noised values alone.
        pending = code_update(
            state,
            delta,
            base,
            instruction.round,
            self._update,
            self._model.layout,
            attempt=attempt,
            rate=instruction.learning_rate,
            envelope=self._envelope,
        )
        noises = permit.mechanism, permit.metrics if instruction.evaluate else None
        return replace(
            pending, noise=noises[0], measured=measured, measured_noise=noises[1], commitment=permit.commitment
        )

    def _precision(self, permit: Authorization) -> ChosenPrecision:
        """What to compute in; settled before any data is looked at, for it can fail."""
        private, size = permit.mechanism is not None, self._model.layout.size
        return choose_precision(self._training.precision, size, torch_device(self._training.device), private=private)

    def _trained(
        self, instruction: TrainRequest, base: np.ndarray, permit: Authorization, precision: ChosenPrecision
    ) -> np.ndarray:
        """Local weights minus `base`, after the round's steps."""
        model, rate = self._model, instruction.learning_rate
        if permit.mechanism is None:
            seed = round_seed(self._seed, self.name, instruction.round)
            return train_locally(
                model.module,
                model.task.sequence_losses,
                self._train,
                base,
                self._training,
                precision,
                learning_rate=rate,
                seed=seed,
            ).delta
        return train_privately(
            model.module,
            model.task,
            self._train,
            base,
            self._training,
            precision,
            permit.mechanism,
            learning_rate=rate,
            declared_units=permit.declared_units,
        ).delta

    def _evaluate(self, vector: np.ndarray, permit: Authorization) -> Evaluation:
        load_vector(self._model.module, vector)
        if permit.mechanism is None:
            return self._model.task.evaluate(self._model.module, self._held_out)
        if permit.metrics is None:
            raise PrivacyError("exact measures carry no noise, and all that leaves in this run does")
        return evaluate_privately(self._model.module, self._model.task, self._held_out, permit.metrics)
