"""Work split over one process per core, and what such processes import."""

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any, TypeVar

from fedglm.core.errors import FedglmError
from fedglm.core.processes.cores import count_cores

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
    # Not from the fork server: a process has only one, which simulations need with torch preloaded.
    try:
        with ProcessPoolExecutor(min(len(pieces), count_cores()), mp_context=get_context("spawn")) as pool:
            with hide_script(work, pieces[0]):  # all are alike, and may be long
                results = pool.map(work, *zip(*pieces, strict=True))
            yield from results
    except BrokenProcessPool as exc:
        raise KilledError("a process that did a part of it was killed, maybe for memory") from exc


@contextmanager
def hide_script(*parts: object) -> Iterator[None]:
    """Keep processes started inside the block from running the user's script again.

    multiprocessing runs it to unpickle objects defined in it. Where none of `parts` is defined there, that is needless,
    and would force each script that simulates or verifies to guard itself by `if __name__ == "__main__"`.
    """
    script = sys.modules["__main__"]
    if b"__main__" not in bytes(ForkingPickler.dumps(parts)):
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
