"""Which waiting requests run together, and when: decisions alone, without threads or a clock.

Three rules:

- **A batch must pay.** Of the oldest request and those nearest to it in length, so many run together as the latency
  table says is fastest for each; one alone where no batch is faster by `MIN_SPEEDUP`.
- **An idle session waits only for what pays.** Waiting for one more request can save what its joining saves, so that is
  the longest it waits after an arrival (the ski-rental rule, Karlin et al., Algorithmica 3, 1988: no more is lost than
  could have been saved), at most until the oldest has waited the deadline, and only while fewer wait than are expected:
  those that the last batch answered, who may ask again, and those who came meanwhile. A lone client is therefore never
  delayed. While the session is busy requests gather anyway.
- **None starves.** The oldest is in every batch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Generic, Protocol, TypeVar

from fedglm.inference.batching.costs import BatchCosts

MIN_SPEEDUP: Final = 1.2
"""A batch that the table calls less faster than this may be slower in truth, where both times are wrong by 10 %
(1.1 / 0.9 = 1.22); and it would make each of its requests wait longer for little."""


class Waiting(Protocol):
    """A request as the scheduler sees it."""

    @property
    def tokens(self) -> int:
        """Number of new tokens."""
        ...

    @property
    def group(self) -> Hashable:
        """Requests of one group may share a run."""
        ...

    @property
    def arrived(self) -> float:
        """Time of its arrival, in seconds."""
        ...


Item = TypeVar("Item", bound=Waiting)


@dataclass(frozen=True)
class Plan(Generic[Item]):
    """The batch that would run next.

    Attributes:
        batch: Its requests; the oldest of all waiting first.
        due: Time at which it is to start unless more arrive, in seconds; in the past where it should start at once.
    """

    batch: tuple[Item, ...]
    due: float


class Scheduler(Generic[Item]):
    """Plans batches.

    Args:
        costs: Latency of the session.
        deadline_s: How long a request may wait for others while the session is idle, in seconds.
        max_batch: Maximum number of requests of a batch.
    """

    def __init__(self, costs: BatchCosts, *, deadline_s: float, max_batch: int) -> None:
        self._cost = lru_cache(maxsize=65_536)(costs.milliseconds)  # asked at each arrival
        self._deadline_s, self._max_batch = deadline_s, max_batch
        self._expected = 1

    @property
    def expects_others(self) -> bool:
        """Whether a request that finds nothing else waiting may be held for others."""
        return self._expected > 1

    def expect(self, clients: int) -> None:
        """Note at the end of a batch how many may share the next: whom it answered, and who waits."""
        self._expected = clients

    def plan(self, waiting: Sequence[Item]) -> Plan[Item]:
        """Plan the next batch of these requests, in order of arrival, at least one."""
        first = waiting[0]
        others = [request for request in waiting[1:] if request.group == first.group]
        others.sort(key=lambda request: abs(request.tokens - first.tokens))
        batch, alone, longest = 1, self._cost(1, first.tokens), first.tokens
        chosen, speedup = (batch, alone, longest), 1.0
        for request in others[: self._max_batch - 1]:
            batch, alone, longest = batch + 1, alone + self._cost(1, request.tokens), max(longest, request.tokens)
            gain = alone / self._cost(batch, longest)
            if gain >= MIN_SPEEDUP and gain > speedup:
                chosen, speedup = (batch, alone, longest), gain
        batch, alone, longest = chosen
        due = first.arrived
        # With more waiting than it takes, one more would not have been taken.
        if batch == len(others) + 1 < self._max_batch and len(waiting) < self._expected:
            due += min(self._deadline_s, waiting[-1].arrived - first.arrived + self._saving_s(first, *chosen, speedup))
        return Plan((first, *others[: batch - 1]), due)

    def _saving_s(self, first: Item, batch: int, alone: float, longest: int, speedup: float) -> float:
        """Return how many seconds of the session one more like the first would save by joining the batch."""
        single, together = self._cost(1, first.tokens), self._cost(batch + 1, longest)
        if (alone + single) / together < max(speedup, MIN_SPEEDUP):
            return 0.0
        return min(single, single + self._cost(batch, longest) - together) / 1000
