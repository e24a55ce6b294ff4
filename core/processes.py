"""Work split over one process per core, for long records."""

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from fedglm.core.errors import FedglmError

_Result = TypeVar("_Result")


class KilledError(FedglmError, RuntimeError):
    """A worker process was killed; its part of the work is missing."""


def map_in_processes(work: Callable[..., _Result], pieces: Sequence[tuple[Any, ...]]) -> Generator[_Result]:
    """Yield the result of `work` for the arguments of each piece, in order; a single piece runs in this process.

    Raises:
        KilledError: A worker process was killed.
    """
    if len(pieces) <= 1:
        yield from (work(*piece) for piece in pieces)
        return
    cores = len(os.sched_getaffinity(0))
    # Not from the fork server: a process has only one, which simulations need with torch preloaded.
    try:
        with ProcessPoolExecutor(min(len(pieces), cores), mp_context=get_context("spawn")) as pool:
            yield from pool.map(work, *zip(*pieces, strict=True))
    except BrokenProcessPool as exc:
        raise KilledError("a process that did a part of it was killed, maybe for memory") from exc
