"""Goals of a light model: what it may cost, and how much worse it may be; importable without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.core.suggestions import list_choices
from fedglm.core.validation_errors import explain

_BYTES: Final = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_TARGET = re.compile(r"(?P<name>[a-z]+)=(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<unit>[a-zA-Z]+)")
_MOST: Final = 1e15
_PERCENT = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)%")


class Goals(BaseModel):
    """Limits that all hold together; None limits nothing.

    Attributes:
        size_ratio: Least ratio of the model's float32 bytes, a tied output layer counted once, to the bytes of all the
            release's files.
        max_bytes: Greatest number of bytes of the release's files.
        latency_ratio: Least ratio of the time that the dense model takes for a token to the light one's, both by the
            same runtime.
        max_latency_ms: Greatest time a generated token, or a row, in milliseconds.
        max_memory_bytes: Greatest memory of the process that uses the model, in bytes.
        tolerance: Greatest rise above an equally trained dense model (`measures.find_rise`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_ratio: float | None = Field(default=None, ge=1, le=1e4)
    max_bytes: int | None = Field(default=None, ge=1)
    latency_ratio: float | None = Field(default=None, gt=0, le=1e4)
    max_latency_ms: float | None = Field(default=None, gt=0)
    max_memory_bytes: int | None = Field(default=None, ge=1)
    tolerance: float = Field(default=0.05, ge=0, le=10)

    @model_validator(mode="after")
    def _limit_something(self) -> Self:
        limits = (self.size_ratio, self.max_bytes, self.latency_ratio, self.max_latency_ms, self.max_memory_bytes)
        if all(limit is None for limit in limits):
            raise ValueError("a goal limits size, latency or memory")
        return self

    def bytes_allowed(self, reference_bytes: int) -> int | None:
        """Return the greatest number of bytes of a release, given those of the dense model; None without a goal."""
        limits = []
        if self.size_ratio is not None:
            limits.append(int(reference_bytes / self.size_ratio))
        if self.max_bytes is not None:
            limits.append(self.max_bytes)
        return min(limits, default=None)

    def describe(self) -> str:
        """Return the goals in one line."""
        parts = []
        if self.size_ratio is not None:
            parts.append(f"at least {self.size_ratio:g}x smaller")
        if self.max_bytes is not None:
            parts.append(f"at most {self.max_bytes:,} bytes")
        if self.latency_ratio is not None:
            parts.append(f"at least {self.latency_ratio:g}x faster")
        if self.max_latency_ms is not None:
            parts.append(f"at most {self.max_latency_ms:g} ms a token")
        if self.max_memory_bytes is not None:
            parts.append(f"at most {self.max_memory_bytes / 1e6:g} MB of memory")
        return ", ".join(parts) + f"; at most {self.tolerance:.2%} worse than the equally trained dense model"


def parse_goals(targets: Sequence[str], tolerance: str) -> Goals:
    """Parse the command's options.

    Args:
        targets: ``size=20x``, ``size=80kB``, ``latency=3x``, ``latency=5ms``, ``memory=256MB``; one option may hold
            several, separated by commas.
        tolerance: A percentage, ``5%``.

    Raises:
        LightenError: A target or the tolerance cannot be read, or a kind is limited twice.
    """
    fields: dict[str, object] = {"tolerance": parse_tolerance(tolerance)}
    for text in [part.strip() for target in targets for part in target.split(",")]:
        name, value = _parse_target(text)
        if name in fields:
            raise LightenError(f"{text}: a limit of this kind is set twice")
        fields[name] = value
    try:
        return Goals.model_validate(fields)
    except ValidationError as exc:
        raise LightenError(f"--target: {explain(exc, Goals)}") from exc


def parse_tolerance(text: str) -> float:
    """Parse a percentage such as ``5%``.

    Raises:
        LightenError: It is none.
    """
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        raise LightenError(f"a tolerance is a percentage such as 5%, not {text!r}")
    return float(match["number"]) / 100


def _parse_target(text: str) -> tuple[str, float | int]:
    match = _TARGET.fullmatch(text)
    if match is None:
        raise LightenError(f"a target is size=20x, size=80kB, latency=3x, latency=5ms or memory=256MB, not {text!r}")
    name, number, unit = match["name"], float(match["number"]), match["unit"].lower()
    if number > _MOST:
        raise LightenError(f"{text[:40]}...: nothing is limited by so large a number")
    match name, unit:
        case "size", "x":
            return "size_ratio", number
        case "size", unit if unit in _BYTES:
            return "max_bytes", int(number * _BYTES[unit])
        case "latency", "x":
            return "latency_ratio", number
        case "latency", "ms":
            return "max_latency_ms", number
        case "memory", unit if unit in _BYTES:
            return "max_memory_bytes", int(number * _BYTES[unit])
    if name not in ("size", "latency", "memory"):
        raise LightenError(f"no target is called {name!r}; {list_choices(name, ('size', 'latency', 'memory'))}")
    raise LightenError(f"{text}: {match['unit']} is no unit of {name}; size=20x, size=80kB, latency=5ms, memory=256MB")
