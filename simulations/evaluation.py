"""Evaluation of a model on the held-out data of every site, which only a simulation has access to.

In a deployment the nodes evaluate the model that they receive, and report the result where their policy allows.
"""

import numpy as np

from fedglm.autoglm.data.examples import select_evenly
from fedglm.autoglm.federation import FederatedData
from fedglm.autoglm.models.parameters import load_vector
from fedglm.autoglm.tasks.evaluation import Evaluation
from fedglm.protocol.federated_model import FederatedModel


class Evaluator:
    """Evaluates model vectors on the sites' held-out data.

    Args:
        data: The sites' data.
        model: Model to compute with; its weights are overwritten.
        sequences: Maximum number of sequences, distributed over the sites in proportion to their sizes.
    """

    def __init__(self, data: FederatedData, model: FederatedModel, sequences: int) -> None:
        self._model = model
        total = sum(len(site.held_out) for site in data.sites)
        share = min(1.0, sequences / total)
        self._held_out = {site.name: select_evenly(site.held_out, share) for site in data.sites}

    def evaluate_sites(self, vector: np.ndarray) -> dict[str, Evaluation]:
        """Return loss and metric on each site's held-out data, by site; `vector` has shape (size,), float32."""
        load_vector(self._model.module, vector)
        return {name: self._model.task.evaluate(self._model.module, part) for name, part in self._held_out.items()}

    def evaluate_all(self, vector: np.ndarray) -> Evaluation:
        """Return loss and metric on all sites' held-out data together."""
        return self._model.task.pool(list(self.evaluate_sites(vector).values()))

    def evaluate_site(self, name: str, vector: np.ndarray) -> Evaluation:
        """Return loss and metric on one site's held-out data."""
        load_vector(self._model.module, vector)
        return self._model.task.evaluate(self._model.module, self._held_out[name])
