"""Errors of autoglm; each message is one line for the user.

ValueError
├── DataError    the records: a missing file or field, a malformed line, a split that cannot be made
└── ModelError   the model: an unknown preset, a folder that holds no model, a vector of another size
"""

from __future__ import annotations

from fedglm.core.errors import FedglmError


class DataError(FedglmError, ValueError):
    """The data cannot be used as they are; the message names the file, the line or the field, and the remedy."""


class ModelError(FedglmError, ValueError):
    """The model cannot be built, filled or saved as asked; the message names the remedy."""
