"""Errors between the two ends of the wire.

    ValueError
    └── CodecError          a blob, a layout or a codec's setting that cannot be used
        └── VersionMismatch a valid downlink message for another model than this node's: ask for a snapshot

The message of each is one line. Any untrusted input ends in one of them or in a valid result; the caller's own mistakes
(a NaN in its update, an accumulator of another shape) raise a plain `ValueError` or `TypeError`.
"""

from fedglm.core.errors import FedglmError


class CodecError(FedglmError, ValueError):
    """A malformed blob, an invalid layout, or an unknown codec or option."""


class VersionMismatch(CodecError):
    """A downlink message that does not continue this node's model; the remedy is a snapshot."""
