"""The device that a plan is for, by its file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class PlannedDevice(BaseModel):
    """A device file.

    Attributes:
        path: Where it lay.
        sha256: Hash (hex) of its content: the same model on another device needs another plan.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, max_length=4096)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
