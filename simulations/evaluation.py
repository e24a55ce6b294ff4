"""Measuring a model as the experimenter can, who sees the held-out data of every site.

In a real deployment nobody can; there, the nodes measure the model that they receive and report it where they may.
"""

import numpy as np

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.federation import FederatedData
from fedglm.autoglm.models.parameters import load_vector
from fedglm.autoglm.tasks.evaluation import Evaluation
from fedglm.protocol.federated_model import FederatedModel


class Evaluator:
    """Measures model vectors on the sites' held-out data.

    Args:
        data: The sites.
        model: Model to compute with; its weights are overwritten.
        sequences: Most sequences that are measured, spread evenly over the sites by their sizes.
    """

    def __init__(self, data: FederatedData, model: FederatedModel, sequences: int) -> None:
        self._model = model
        total = sum(len(site.held_out) for site in data.sites)
        share = min(1.0, sequences / total)
        self._held_out = {site.name: spread(site.held_out, share) for site in data.sites}

    def by_site(self, vector: np.ndarray) -> dict[str, Evaluation]:
        """Loss and metric on each site's held-out data."""
        load_vector(self._model.module, vector)
        return {name: self._model.task.evaluate(self._model.module, part) for name, part in self._held_out.items()}

    def overall(self, vector: np.ndarray) -> Evaluation:
        """Loss and metric on all sites' held-out data together."""
        return self._model.task.pool(list(self.by_site(vector).values()))

    def of_site(self, name: str, vector: np.ndarray) -> Evaluation:
        """Loss and metric on one site's held-out data."""
        load_vector(self._model.module, vector)
        return self._model.task.evaluate(self._model.module, self._held_out[name])


def spread(examples: Examples, share: float) -> Examples:
    """Every 1/share-th example, at least one; all of them for a share of 1."""
    wanted = max(1, round(share * len(examples)))
    if wanted >= len(examples):
        return examples
    return examples.select(np.linspace(0, len(examples) - 1, wanted).round().astype(np.int64))
