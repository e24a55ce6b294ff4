"""Connections of a port: few slots for unauthenticated clients, which displace each other; slots of its own per site.

    silent            no byte has been received: the connection costs a descriptor, and next to no memory
    unauthenticated   TLS has begun; a request whose headers a site has signed authenticates the connection
    authenticated     it stays, however many unauthenticated clients connect

When all slots are in use, the oldest unauthenticated connection is dropped; one from an address where a site was
authenticated within the last day is dropped after all others. One address may use some of the slots, never all.
"""

import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

CONNECTION: Final = "fedglm.connection"
"""Key of a request's `Connection` in the state of its ASGI scope."""

_KNOWN_ADDRESS_S: Final = 86400.0
_MAX_KNOWN_ADDRESSES: Final = 4096


@dataclass(frozen=True)
class ConnectionLimits:
    """Maximum numbers of connections.

    Attributes:
        silent: Maximum connections that have sent no byte.
        unauthenticated: Maximum connections that have sent bytes, but are not authenticated; in asyncio's own event
            loop each takes a third of a MiB.
        per_address: Maximum unauthenticated connections of one address (of one /64 with IPv6).
        per_site: Maximum authenticated connections of one site.
    """

    silent: int = 1024
    unauthenticated: int = 128
    per_address: int = 48
    per_site: int = 16

    @classmethod
    def for_descriptors(cls, descriptors: int) -> "ConnectionLimits":
        """Make limits for a process with this maximum of open files: half at most are for unauthenticated clients."""
        available = descriptors // 2
        unauthenticated = min(cls.unauthenticated, available // 4)
        return cls(
            silent=min(cls.silent, available - unauthenticated),
            unauthenticated=unauthenticated,
            per_address=min(48, unauthenticated),
        )


@dataclass(eq=False)
class Connection:
    """One connection.

    Attributes:
        address: Client's address; with IPv6 its /64 network.
        abort: Closes the connection at once.
        table: Table that counts the connection.
        site: Name of the site whose key signed a request over this connection; None while unauthenticated.
        since: Time of the connection or of its first byte, by the monotonic clock in seconds.
    """

    address: str
    abort: Callable[[], None]
    table: "ConnectionTable"
    site: str | None = None
    since: float = field(default_factory=time.monotonic)

    def authenticate(self, site: str) -> None:
        """Count the connection as the site's, after a request with the site's signature."""
        if self.site is None:
            self.table.mark_authenticated(self, site)


class _Slots:
    """Connections of one state, the oldest first.

    Args:
        limit: Maximum number of connections.
        limit_per_group: Maximum number of connections of one group.
    """

    def __init__(self, limit: int, limit_per_group: int) -> None:
        self._limit, self._limit_per_group = limit, limit_per_group
        self._all: dict[Connection, str] = {}
        self._groups: dict[str, dict[Connection, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(
        self, connection: Connection, group: str, is_spared: Callable[[str], bool] = lambda _: False
    ) -> Connection | None:
        """Add a connection; return the one that is displaced by it."""
        own = self._groups.setdefault(group, {})
        displaced: Connection | None = None
        if len(own) >= self._limit_per_group:
            displaced = next(iter(own))
        elif len(self._all) >= self._limit:
            displaced = next((old for old, name in self._all.items() if not is_spared(name)), next(iter(self._all)))
        if displaced is not None:
            self.remove(displaced)
        self._all[connection] = group
        self._groups.setdefault(group, {})[connection] = None
        return displaced

    def remove(self, connection: Connection) -> None:
        group = self._all.pop(connection, None)
        if group is not None:
            del self._groups[group][connection]
            if not self._groups[group]:
                del self._groups[group]

    def older_than(self, moment: float) -> list[Connection]:
        old = []
        for connection in self._all:
            if connection.since >= moment:
                break
            old.append(connection)
        return old


class ConnectionTable:
    """All connections of a port.

    Args:
        limits: Maximum numbers of connections; None for the defaults.
    """

    def __init__(self, limits: ConnectionLimits | None = None) -> None:
        limits = limits or ConnectionLimits()
        self._silent = _Slots(limits.silent, limits.silent)
        self._unauthenticated = _Slots(limits.unauthenticated, limits.per_address)
        self._authenticated = _Slots(2**31, limits.per_site)
        self._known: dict[str, float] = {}

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of silent, unauthenticated and authenticated connections."""
        return len(self._silent), len(self._unauthenticated), len(self._authenticated)

    def add(self, address: str, abort: Callable[[], None]) -> Connection:
        """Add a new connection, as silent.

        Args:
            address: Client's IP address.
            abort: Closes the connection at once.
        """
        connection = Connection(_group_address(address), abort, self)
        self._place(self._silent, connection, connection.address)
        return connection

    def mark_unauthenticated(self, connection: Connection) -> None:
        """Count a silent connection as unauthenticated: its first byte has been received."""
        self._silent.remove(connection)
        connection.since = time.monotonic()
        self._place(self._unauthenticated, connection, connection.address)

    def mark_authenticated(self, connection: Connection, site: str) -> None:
        """Count an unauthenticated connection as the site's."""
        connection.site = site
        self._unauthenticated.remove(connection)
        self._known.pop(connection.address, None)
        self._known[connection.address] = time.monotonic()
        while len(self._known) > _MAX_KNOWN_ADDRESSES:
            del self._known[next(iter(self._known))]
        self._place(self._authenticated, connection, site)

    def remove(self, connection: Connection) -> None:
        """Remove a connection that has ended."""
        for slots in (self._silent, self._unauthenticated, self._authenticated):
            slots.remove(connection)

    def drop_silent(self, older_s: float) -> None:
        """Close the connections that have been silent for more than `older_s` seconds."""
        for connection in self._silent.older_than(time.monotonic() - older_s):
            self._silent.remove(connection)
            connection.abort()

    def _place(self, slots: _Slots, connection: Connection, group: str) -> None:
        if (displaced := slots.add(connection, group, self._is_known)) is not None:
            displaced.abort()

    def _is_known(self, address: str) -> bool:
        return time.monotonic() - self._known.get(address, -2 * _KNOWN_ADDRESS_S) < _KNOWN_ADDRESS_S


def _group_address(address: str) -> str:
    """Return the address; for IPv6 its /64 network, since one machine may have all of its addresses."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((parsed, 64), strict=False))
    return str(parsed)
