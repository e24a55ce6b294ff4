"""Work in pieces by one process a core, for records that are long."""

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from fedglm.core.errors import FedglmError

_Result = TypeVar("_Result")


class KilledError(FedglmError, RuntimeError):
    """A process that did a part of the work was killed; its part is missing."""


def in_processes(work: Callable[..., _Result], pieces: Sequence[tuple[Any, ...]]) -> Generator[_Result]:
    """What `work` gives for the arguments of each piece, in their order; for one alone, without another process.

    Raises:
        KilledError: A process was killed.
    """
    if len(pieces) <= 1:
        yield from (work(*piece) for piece in pieces)
        return
    cores = len(os.sched_getaffinity(0))
    # Not from the fork server: there is one in a process, which a simulation wants with torch in it.
    try:
        with ProcessPoolExecutor(min(len(pieces), cores), mp_context=get_context("spawn")) as pool:
            yield from pool.map(work, *zip(*pieces, strict=True))
    except BrokenProcessPool as exc:
        raise KilledError("a process that did a part of it was killed, maybe for memory") from exc
