"""Training and evaluation on a node's own records, with the noise that the outbound gate authorizes."""

import numpy as np

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.models.parameters import load_vector
from fedglm.autoglm.settings import LocalTrainingSettings
from fedglm.autoglm.tasks.evaluation import Evaluation
from fedglm.autoglm.training.local import round_seed, train_locally
from fedglm.autoglm.training.precision import ChosenPrecision, choose_precision, torch_device
from fedglm.client.exchange import Authorization
from fedglm.client.private_training import evaluate_privately, train_privately
from fedglm.privacy.errors import PrivacyError
from fedglm.protocol.federated_model import FederatedModel
from fedglm.protocol.messages import TrainRequest


class LocalTrainer:
    """Trains and evaluates a node's model on its records; it keeps nothing from round to round but their inputs.

    Args:
        name: Name of the node; it is part of the seed of the data order.
        model: Model and task.
        train: Training data.
        held_out: Data that received models are evaluated on.
        settings: Steps, batch size, optimizer, precision, device.
        seed: Seed of the experiment; it decides the data order and nothing else.
    """

    def __init__(
        self,
        name: str,
        model: FederatedModel,
        *,
        train: Examples,
        held_out: Examples,
        settings: LocalTrainingSettings,
        seed: int,
    ) -> None:
        self._name, self._seed = name, seed
        self._model, self._settings = model, settings
        self._train, self._held_out = train, held_out

    def choose_precision(self, authorization: Authorization) -> ChosenPrecision:
        """Choose format and device; called before any record is used, because it can fail.

        Raises:
            PrecisionError: The device does not support the precision in the settings.
        """
        settings, private = self._settings, authorization.mechanism is not None
        device = torch_device(settings.device)
        return choose_precision(settings.precision, self._model.layout.size, device, private=private)

    def train(
        self, request: TrainRequest, base: np.ndarray, authorization: Authorization, precision: ChosenPrecision
    ) -> np.ndarray:
        """Take the round's local steps, with DP-SGD where a mechanism is authorized.

        Args:
            request: The server's request, with round and learning rate.
            base: Received model, shape (size,), float32.
            authorization: The gate's, with the mechanism.
            precision: Chosen format and device.

        Returns:
            Local weights minus `base`, shape (size,), float32.

        Raises:
            TrainingError: A loss or a weight is not finite.
            DataError, PrivacyError: There are no examples, or DP-SGD does not support the model or the precision.
        """
        model, rate = self._model, request.learning_rate
        if authorization.mechanism is None:
            seed = round_seed(self._seed, self._name, request.round)
            return train_locally(
                model.module,
                model.task.sequence_losses,
                self._train,
                base,
                self._settings,
                precision,
                learning_rate=rate,
                seed=seed,
            ).delta
        return train_privately(
            model.module,
            model.task,
            self._train,
            base,
            self._settings,
            precision,
            authorization.mechanism,
            learning_rate=rate,
            declared_units=authorization.declared_units,
        ).delta

    def evaluate(self, vector: np.ndarray, authorization: Authorization) -> Evaluation:
        """Evaluate a model on the held-out data.

        Args:
            vector: Weights, shape (size,), float32.
            authorization: The gate's, with the mechanism of the metrics.

        Raises:
            PrivacyError: Updates are noised in this run, and no noise is authorized for the metrics.
        """
        load_vector(self._model.module, vector)
        if authorization.mechanism is None:
            return self._model.task.evaluate(self._model.module, self._held_out)
        if authorization.metrics_mechanism is None:
            raise PrivacyError("exact measures carry no noise, and all that leaves in this run does")
        return evaluate_privately(self._model.module, self._model.task, self._held_out, authorization.metrics_mechanism)
