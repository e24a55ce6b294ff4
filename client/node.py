"""An edge node: from a request of the server to an update that the outbound gate may release.

The node is independent of the transport. It holds its data, rebuilds the model from the downlink, trains, codes the
difference with error feedback, and keeps its state on its own disk. The order of the steps is the guarantee: state is
written before anything is handed to the outbound gate, and the residual is committed only once the server has
acknowledged, in its next request, that it aggregated the update.

All that is computed from records for one request is one attempt, with an id. Its answer is stored, and sent again when
the server asks again. So is the failure of an attempt: it depends on data and noise, therefore its reason stays here,
and the ledger is charged.
"""

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.models.parameters import load_vector
from fedglm.autoglm.models.release import save_release
from fedglm.autoglm.settings import LocalTrainingSettings
from fedglm.autoglm.training.local import TrainingError
from fedglm.autoglm.training.precision import ChosenPrecision
from fedglm.client.coding import code_update
from fedglm.client.exchange import Authorization, NodeResult
from fedglm.client.local_trainer import LocalTrainer
from fedglm.client.state.node_state import NodeState, PendingUpdate, StoredEvaluation
from fedglm.compression.codec import CodecError
from fedglm.compression.downlink import Replica
from fedglm.compression.layout import Layout
from fedglm.compression.settings import UpdateSettings
from fedglm.core.files import StorageError
from fedglm.privacy.errors import Refusal
from fedglm.privacy.keys.vault import Vault
from fedglm.privacy.ledger.charges import make_attempt_id
from fedglm.protocol.federated_model import FederatedModel
from fedglm.protocol.messages import JoinReply, TrainReply, TrainRequest


class Node:
    """One participant of a federation.

    Args:
        name: Name of the node, unique in the federation.
        model: Model and task.
        train: The node's training data.
        held_out: Data that the node evaluates received models on.
        training: Steps, batch size, optimizer, precision.
        update: Codec and error feedback.
        folder: Folder of the node's state; it is created when first needed.
        seed: Seed of the experiment; it decides the data order and nothing else.
        declared: Number of examples that the site declares publicly as its weight; 0 declares none.
        envelope: Bytes of the message around an update, which `update.max_ratio` includes.
        vault: Encrypts the state at rest; None leaves it unencrypted.
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
        self.folder = folder
        self._vault = vault
        self._model = model
        self._trainer = LocalTrainer(name, model, train=train, held_out=held_out, settings=training, seed=seed)
        self._max_learning_rate = training.learning_rate
        self._update = update
        self._declared = declared
        self._envelope = envelope

    def join(self) -> JoinReply:
        """Return the reply to the query at the start of a run: the node's name and the model version it holds.

        Raises:
            StateError: The node's state is damaged.
        """
        state = NodeState.load(self.folder, self._model.layout.size, vault=self._vault)
        return JoinReply(
            name=self.name,
            run=state.run,
            version=state.version,
            layout=self._model.layout.sha256,
            examples=self._declared,
        )

    @property
    def layout(self) -> Layout:
        """Names and shapes of the federated parameters."""
        return self._model.layout

    def rebuild(self, run: str, downlink: bytes) -> tuple[int, np.ndarray | None]:
        """Rebuild the server's model from the one that the node holds, whose state stays as it is.

        Args:
            run: Identity of the run.
            downlink: Message of the versioned downlink.

        Returns:
            Version that the node holds, and the model, shape (size,), float32; None where the message does not lead to
            one from there.

        Raises:
            StateError: The node's state is damaged.
        """
        state = NodeState.load(self.folder, self._model.layout.size, run=run, vault=self._vault)
        replica = self._make_replica(state)
        try:
            replica.apply(downlink)
        except CodecError:
            return state.version, None
        return state.version, replica.vector

    def save_model(self, vector: np.ndarray, folder: Path) -> None:
        """Write a model as a run's: as transformers saves it, with its task and tokenizer; adapters are merged.

        Args:
            vector: Federated parameters, shape (size,), float32.
            folder: New folder.

        Raises:
            OSError: It cannot be written.
        """
        load_vector(self._model.module, vector)
        save_release(self._model.module, self._model.task, folder)

    def train(self, request: TrainRequest, downlink: bytes, authorization: Authorization) -> NodeResult:
        """Rebuild the server's model, train on it, and code the difference.

        Args:
            request: The server's request.
            downlink: Message of the versioned downlink.
            authorization: Authorization of the request by the outbound gate.

        Raises:
            Refusal: The request is not of the plan, or the ledger has too little budget left for another update.
            CodecError: The server builds another model.
            StateError, StorageError: The node's disk is damaged or full.
            PrecisionError: The device does not support the precision.
        """
        if not request.learning_rate <= self._max_learning_rate:
            detail = f"the learning rate {request.learning_rate:g}, and the plan has {self._max_learning_rate:g}"
            raise Refusal("plan", f"the instruction asks for {detail} at most")
        state = self._load(request, authorization)
        replica = self._receive(state, request, downlink, authorization)
        if replica is None:
            return NodeResult(TrainReply(nonce=request.nonce, holds=state.version))
        precision = self._trainer.choose_precision(authorization)
        pending, failure = state.pending, None
        if pending is None or (pending.round, pending.base_sha256) != (request.round, replica.sha256):
            authorization.check_budget()
            pending, failure = self._attempt_update(request, state, replica, authorization, precision)
        else:  # asked again for a round that this node has trained for: the same bytes and numbers
            state.save(self.folder)
        has_metrics = pending.evaluation is not None or pending.evaluation_noise is not None
        return NodeResult(
            TrainReply(nonce=request.nonce),
            pending.blob,
            pending.evaluation,
            pending.noise,
            pending.evaluation_noise,
            pending.attempt,
            ("update", "metrics") if has_metrics else ("update",),
            failure or (None if pending.blob is not None else TrainingError("the attempt failed when it was made")),
        )

    def evaluate(self, request: TrainRequest, downlink: bytes, authorization: Authorization) -> NodeResult:
        """Rebuild the server's model and evaluate it on the node's held-out data.

        Args:
            request: The server's request.
            downlink: Message of the versioned downlink.
            authorization: Authorization of the request by the outbound gate.

        Raises:
            Refusal: The request is not of the plan, or the ledger has too little budget left for further metrics.
            CodecError: The server builds another model.
            StateError, StorageError: The node's disk is damaged or full.
        """
        state = self._load(request, authorization)
        replica = self._receive(state, request, downlink, authorization)
        if replica is None:
            return NodeResult(TrainReply(nonce=request.nonce, holds=state.version))
        stored, failure = state.evaluation, None
        if stored is None or (stored.round, stored.base_sha256) != (request.round, replica.sha256):
            authorization.check_budget()
            stored, failure = self._attempt_evaluation(request, state, replica, authorization)
        else:
            state.save(self.folder)
        return NodeResult(
            TrainReply(nonce=request.nonce),
            evaluation=stored.evaluation,
            evaluation_noise=stored.noise,
            attempt=stored.attempt,
            purposes=("metrics",),
            failure=failure or (None if stored.evaluation else TrainingError("the attempt failed when it was made")),
        )

    def _load(self, request: TrainRequest, authorization: Authorization) -> NodeState:
        """Load the node's state of this run, with the residual that the server has acknowledged.

        A server can acknowledge an update that it never received, for example when the node was killed before it
        charged for it. The residual of such an update is not added to later ones, because their charges pay for their
        own noise alone; and a residual without noise is not added to noised updates.
        """
        if request.layout != self._model.layout.sha256:
            raise CodecError(
                f"node {self.name} builds another model (layout {self._model.layout.sha256[:12]}) than the server "
                f"({request.layout[:12]}): give both the same [model] and [data]"
            )
        state = NodeState.load(self.folder, self._model.layout.size, run=request.run, vault=self._vault)
        is_charged = state.pending is not None and authorization.has_charged(state.pending.attempt)
        state.apply_acknowledgement(request.acknowledged if is_charged else 0, request.round)
        # An answer that is not charged yet would be charged to a data set that it was not made from.
        if state.pending is not None and not is_charged and state.pending.commitment != authorization.commitment:
            state.pending = None
        if state.evaluation is not None and state.evaluation.commitment != authorization.commitment:
            state.evaluation = None
        if authorization.mechanism is not None and not state.residual_noised:
            state.residual, state.residual_round, state.residual_rate = None, 0, None
        return state

    def _receive(
        self, state: NodeState, request: TrainRequest, downlink: bytes, authorization: Authorization
    ) -> Replica | None:
        """Bring the stored model to the request's version; return None when the node needs a snapshot for that.

        Raises:
            Refusal: Rule `models`: version 0 does not have the hash in the plan, which the policy was checked for.
        """
        replica = self._make_replica(state)
        try:
            replica.apply(downlink)
        except CodecError:
            return None
        if replica.version != request.version:
            return None
        if replica.version == 0 and authorization.model not in (None, replica.sha256):
            raise Refusal("models", "the run starts from other weights than its plan names")
        state.version, state.base = replica.version, replica.vector
        return replica

    def _make_replica(self, state: NodeState) -> Replica:
        """Make the copy of the model that the node holds."""
        if state.base is None:
            # Version 0 is the initialisation, which both ends compute for themselves; the blob holds its hash.
            state.version, state.base = 0, self._model.initial
        return Replica(
            state.version,
            state.base,
            self._model.layout.sha256,
            grid=self._model.downlink.grid,
            codec=self._model.downlink.codec,
        )

    def _attempt_update(
        self,
        request: TrainRequest,
        state: NodeState,
        replica: Replica,
        authorization: Authorization,
        precision: ChosenPrecision,
    ) -> tuple[PendingUpdate, Exception | None]:
        """Make an update and store it; store the failure of an update that cannot be made."""
        base = replica.vector
        failed = PendingUpdate(
            request.round,
            replica.sha256,
            make_attempt_id(),
            blob=None,
            residual=None,
            noise=authorization.mechanism,
            evaluation_noise=authorization.metrics_mechanism if request.evaluate else None,
            commitment=authorization.commitment,
        )
        try:
            evaluation = self._trainer.evaluate(base, authorization) if request.evaluate else None
            delta = self._trainer.train(request, base, authorization, precision)
            # From here on no record is used: selection and coding depend on noised values alone.
            update = code_update(
                state,
                delta,
                base,
                request.round,
                self._update,
                self._model.layout,
                attempt=failed.attempt,
                rate=request.learning_rate,
                envelope=self._envelope,
            )
            state.pending = replace(
                update,
                noise=failed.noise,
                evaluation=evaluation,
                evaluation_noise=failed.evaluation_noise,
                commitment=failed.commitment,
            )
            state.save(self.folder)
        except Exception as exc:
            state.pending = failed
            self._save_failure(state, exc)
            return failed, exc
        return state.pending, None

    def _attempt_evaluation(
        self, request: TrainRequest, state: NodeState, replica: Replica, authorization: Authorization
    ) -> tuple[StoredEvaluation, Exception | None]:
        """Evaluate and store the result; store the failure of an evaluation that cannot be made."""
        noise = authorization.metrics_mechanism
        failed = StoredEvaluation(
            request.round, replica.sha256, make_attempt_id(), None, noise, authorization.commitment
        )
        try:
            state.evaluation = replace(failed, evaluation=self._trainer.evaluate(replica.vector, authorization))
            state.save(self.folder)
        except Exception as exc:
            state.evaluation = failed
            self._save_failure(state, exc)
            return failed, exc
        return state.evaluation, None

    def _save_failure(self, state: NodeState, exc: Exception) -> None:
        """Store that an attempt failed, unless the disk failed: then the attempt is repeated, and charged again."""
        if not isinstance(exc, StorageError):
            with contextlib.suppress(StorageError):
                state.save(self.folder)
