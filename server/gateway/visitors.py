"""Who is connected: few places for strangers, who give way to the next; a place of its own for who proved to be a site.

    silent      a connection of which no byte has come: a descriptor, and next to no memory
    unproven    it speaks TLS, or begins to; a request whose headers a site has signed proves it
    proven      it stays, however many strangers come

When there is no place left, the oldest stranger goes; one of an address from which a site came within the last day goes
after all others. An address has some of the places, never all.
"""

import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

VISITOR: Final = "fedglm.visitor"
"""Key of an ASGI scope's state, where a request's `Visitor` stands."""

_KNOWN_S: Final = 86400.0
_KNOWN_ADDRESSES: Final = 4096


@dataclass(frozen=True)
class Places:
    """How many there are.

    Attributes:
        silent: Connections of which no byte has come.
        unproven: Those that speak, and have proved nothing; in asyncio's own event loop each takes a third of a MiB.
        of_address: The same, of one address (of one /64 with IPv6).
        of_site: Connections of one site.
    """

    silent: int = 1024
    unproven: int = 128
    of_address: int = 48
    of_site: int = 16

    @classmethod
    def within(cls, descriptors: int) -> "Places":
        """Places for a process that may have so many open files: half of them are for strangers, at most."""
        strangers = descriptors // 2
        unproven = min(cls.unproven, strangers // 4)
        return cls(silent=min(cls.silent, strangers - unproven), unproven=unproven, of_address=min(48, unproven))


@dataclass(eq=False)
class Visitor:
    """One connection.

    Attributes:
        address: Where it comes from.
        drop: Ends it at once.
        prove: Is called when a site has signed a request that came over it.
        site: That site.
    """

    address: str
    drop: Callable[[], None]
    book: "Visitors"
    site: str | None = None
    since: float = field(default_factory=time.monotonic)

    def prove(self, site: str) -> None:
        """A request of this site came over it."""
        if self.site is None:
            self.book.proved(self, site)


class _Places:
    """Places of one kind, the oldest visitor first.

    Args:
        limit: In all.
        limit_of_one: Of one group.
    """

    def __init__(self, limit: int, limit_of_one: int) -> None:
        self._limit, self._limit_of_one = limit, limit_of_one
        self._all: dict[Visitor, str] = {}
        self._groups: dict[str, dict[Visitor, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, visitor: Visitor, group: str, spared: Callable[[str], bool] = lambda _: False) -> Visitor | None:
        """Give a place; returns who must go for it."""
        own = self._groups.setdefault(group, {})
        leaves: Visitor | None = None
        if len(own) >= self._limit_of_one:
            leaves = next(iter(own))
        elif len(self._all) >= self._limit:
            leaves = next((old for old, name in self._all.items() if not spared(name)), next(iter(self._all)))
        if leaves is not None:
            self.remove(leaves)
        self._all[visitor] = group
        self._groups.setdefault(group, {})[visitor] = None
        return leaves

    def remove(self, visitor: Visitor) -> None:
        group = self._all.pop(visitor, None)
        if group is not None:
            del self._groups[group][visitor]
            if not self._groups[group]:
                del self._groups[group]

    def older_than(self, moment: float) -> list[Visitor]:
        old = []
        for visitor in self._all:
            if visitor.since >= moment:
                break
            old.append(visitor)
        return old


class Visitors:
    """All connections of a port.

    Args:
        places: How many there may be.
    """

    def __init__(self, places: Places | None = None) -> None:
        places = places or Places()
        self._silent = _Places(places.silent, places.silent)
        self._unproven = _Places(places.unproven, places.of_address)
        self._proven = _Places(2**31, places.of_site)
        self._known: dict[str, float] = {}

    @property
    def counts(self) -> tuple[int, int, int]:
        """Silent, unproven, proven."""
        return len(self._silent), len(self._unproven), len(self._proven)

    def admit(self, address: str, drop: Callable[[], None]) -> Visitor:
        """Somebody has connected."""
        visitor = Visitor(_group(address), drop, self)
        self._place(self._silent, visitor, visitor.address)
        return visitor

    def spoke(self, visitor: Visitor) -> None:
        """Its first byte has come."""
        self._silent.remove(visitor)
        visitor.since = time.monotonic()
        self._place(self._unproven, visitor, visitor.address)

    def proved(self, visitor: Visitor, site: str) -> None:
        """It is a site's."""
        visitor.site = site
        self._unproven.remove(visitor)
        self._known.pop(visitor.address, None)
        self._known[visitor.address] = time.monotonic()
        while len(self._known) > _KNOWN_ADDRESSES:
            del self._known[next(iter(self._known))]
        self._place(self._proven, visitor, site)

    def left(self, visitor: Visitor) -> None:
        """The connection has ended."""
        for places in (self._silent, self._unproven, self._proven):
            places.remove(visitor)

    def drop_silent(self, older_s: float) -> None:
        """End the connections of which no byte has come for so long."""
        for visitor in self._silent.older_than(time.monotonic() - older_s):
            self._silent.remove(visitor)
            visitor.drop()

    def _place(self, places: _Places, visitor: Visitor, group: str) -> None:
        if (leaves := places.add(visitor, group, self._is_known)) is not None:
            leaves.drop()

    def _is_known(self, address: str) -> bool:
        return time.monotonic() - self._known.get(address, -2 * _KNOWN_S) < _KNOWN_S


def _group(address: str) -> str:
    """The address; of one of IPv6 its /64, of which one machine may have all."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((parsed, 64), strict=False))
    return str(parsed)
