"""The power that the processor draws, where the kernel lets it be read: RAPL, the running average power limit.

Its counters of energy (`powercap <https://docs.kernel.org/power/powercap/powercap.html>`_) are of whole processor
packages, with all that ran on them; most machines show them to root alone, virtual ones to nobody.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

_POWERCAP = Path("/sys/class/powercap")


class PowerMeter:
    """Measures the mean power of all processor packages in a ``with`` block.

    Args:
        powercap: Folder of the kernel's counters.

    Attributes:
        watts: Mean power, after the block; None where it cannot be read.
    """

    def __init__(self, powercap: Path = _POWERCAP) -> None:
        self._powercap = powercap
        self.watts: float | None = None

    def __enter__(self) -> Self:
        self._before, self._start = dict(self._read()), time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        after, seconds = dict(self._read()), time.monotonic() - self._start
        if self._before and after.keys() == self._before.keys() and seconds > 0:
            # A counter that ran over starts again at 0.
            joules = sum((after[zone][0] - self._before[zone][0]) % (after[zone][1] + 1) for zone in after) / 1e6
            self.watts = joules / seconds

    def _read(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield each package with its energy so far, and the most that its counter can hold, in microjoules."""
        for zone in sorted(self._powercap.glob("intel-rapl:*")):
            if zone.name.count(":") != 1:  # a part of a package
                continue
            try:
                energy, most = (int((zone / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
            except (OSError, ValueError):
                continue
            yield zone.name, (energy, most)
