"""The processor and memory of this machine, as the Linux kernel tells them."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import psutil
from pydantic import BaseModel, ConfigDict, Field

from fedglm.core.processes.control_groups import read_core_limit, read_memory_limit

_FROZEN: Final = ConfigDict(frozen=True, extra="forbid")
_FEATURES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "avx2": ("avx2",),
        "avx512": ("avx512f",),
        "vnni": ("avx512_vnni", "avx_vnni"),
        "amx": ("amx_int8",),
        "neon": ("asimd",),
        "dotprod": ("asimddp",),
        "i8mm": ("i8mm",),
    }
)
"""Features that kernels for quantized weights use, each with the names that the kernel has for it on x86 and arm64."""


class Processor(BaseModel):
    """A processor.

    Attributes:
        name: Its name; empty where the kernel tells none, as on many arm64 machines.
        architecture: "x86_64" or "aarch64".
        features: Whether it has each of the features that kernels for quantized weights use.
        cores: Number of cores that this process may use; a control group may allow part of one.
        cache_bytes: Size of the largest cache, 0 where the kernel does not tell.
    """

    model_config = _FROZEN

    name: str = Field(max_length=200)
    architecture: str = Field(max_length=40)
    features: dict[str, bool] = Field(max_length=40)
    cores: float = Field(gt=0)
    cache_bytes: int = Field(ge=0)


class Memory(BaseModel):
    """The memory of a machine.

    Attributes:
        limit_bytes: What this process may take: all of it, or what its control group allows.
        available_bytes: What was free.
    """

    model_config = _FROZEN

    limit_bytes: int = Field(gt=0)
    available_bytes: int = Field(ge=0)


def read_processor(proc: Path = Path("/proc"), system: Path = Path("/sys")) -> Processor:
    """Read what the kernel tells of the processor.

    Args:
        proc: Where the kernel's process files are.
        system: Where its system files are.
    """
    lines = (proc / "cpuinfo").read_text().splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return Processor(
        name=fields.get("model name", ""),
        architecture=platform.machine(),
        features={name: not flags.isdisjoint(names) for name, names in _FEATURES.items()},
        cores=read_core_limit(),
        cache_bytes=_read_cache(system),
    )


def read_memory() -> Memory:
    """Read what this process may take of the memory, and what is free."""
    limit = read_memory_limit()
    return Memory(limit_bytes=limit, available_bytes=min(limit, psutil.virtual_memory().available))


def _read_cache(system: Path) -> int:
    """Read the size of the largest cache of the first core, in bytes."""
    units = {"K": 2**10, "M": 2**20}
    sizes = [0]
    for path in (system / "devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text[:-1].isdecimal() and text[-1] in units:
            sizes.append(int(text[:-1]) * units[text[-1]])
    return max(sizes)
