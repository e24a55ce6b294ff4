"""What can go wrong between two ends of the wire.

    ValueError
    └── CodecError          a blob, a layout or a codec's setting that cannot be used
        └── VersionMismatch a good downlink blob, but not for the model held here: ask for a snapshot

Both say in one line what is wrong. Everything a stranger can send ends in one of them or in a valid result; what only
the caller can get wrong (a NaN in an own update, a wrong accumulator) is a plain `ValueError` or `TypeError`.
"""

from fedglm.core.errors import FedglmError


class CodecError(FedglmError, ValueError):
    """A malformed blob, a layout that makes no sense, or a codec that does not exist."""


class VersionMismatch(CodecError):
    """A downlink blob that does not continue the model held here; the remedy is a snapshot."""
