"""Errors of pruning."""

from __future__ import annotations

from fedglm.autoglm.errors import ModelError


class PruningError(ModelError):
    """The model, the plan or the budget does not allow the cut; the message names the remedy."""
