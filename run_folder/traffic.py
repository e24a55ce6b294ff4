"""Bytes of messages, coded and dense."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """Bytes in the messages, and what dense float32 of the same parameters would take for the same nodes."""

    uplink: int = 0
    downlink: int = 0
    dense_uplink: int = 0
    dense_downlink: int = 0

    @property
    def total(self) -> int:
        """Coded bytes, uplink and downlink together."""
        return self.uplink + self.downlink

    @property
    def dense_total(self) -> int:
        """Dense bytes, uplink and downlink together."""
        return self.dense_uplink + self.dense_downlink

    @property
    def ratio(self) -> float | None:
        """Coded bytes over dense bytes, uplink and downlink together; None before the first round."""
        return self.total / self.dense_total if self.dense_total else None

    def __add__(self, other: "Traffic") -> "Traffic":
        """Add the bytes of two records."""
        return Traffic(
            self.uplink + other.uplink,
            self.downlink + other.downlink,
            self.dense_uplink + other.dense_uplink,
            self.dense_downlink + other.dense_downlink,
        )
