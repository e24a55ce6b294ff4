"""A port of the SuperLink: what comes in is counted before it costs anything, and TLS begins with the first byte.

A connection of which nothing comes takes a descriptor. uvicorn would set up TLS for it, of which each connection takes
a third of a MiB, wait for a minute, and take on as many as the process may have descriptors: then no site gets in.
"""

import asyncio
import errno
import logging
import resource
import socket
import ssl
from collections.abc import Callable
from typing import Final

from fedglm.server.gateway.visitors import Visitor, Visitors

SILENT_S: Final = 10.0
"""From the connection to its first byte; a node's comes at once."""

HANDSHAKE_S: Final = 10.0
DESCRIPTORS: Final = 65536
"""Open files that are of use; the services in docs/deploy ask for as many."""

_GOODBYE_S: Final = 2.0  # for the other side to end TLS too
_BACKLOG: Final = 2048
_AT_ONCE: Final = 64  # connections taken before others get their turn
_PAUSE_S: Final = 0.2  # where the process has no descriptor left
_NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_log = logging.getLogger("uvicorn.error")


class Port:
    """Takes connections on a socket, and hands those that speak to a protocol, over TLS.

    Args:
        listening: Bound, not listening yet.
        context: For TLS.
        protocol: Makes what speaks with a visitor.
        admits: Whether a connection may stay at all, asked as soon as it is there.
        visitors: Their places.
    """

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext,
        protocol: Callable[[Visitor], asyncio.Protocol],
        *,
        admits: Callable[[socket.socket], bool] = lambda _: True,
        visitors: Visitors | None = None,
    ) -> None:
        self._listening, self._context, self._protocol, self._admits = listening, context, protocol, admits
        self.visitors = visitors or Visitors()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._is_open = False

    def open(self) -> None:
        """Take connections from now on."""
        self._listening.setblocking(False)
        self._listening.listen(_BACKLOG)
        self._is_open = True
        self._loop.add_reader(self._listening.fileno(), self._take)
        self._sweeper = self._loop.create_task(self._sweep())

    def close(self) -> None:
        """Take no more; those that are there stay, but for the silent ones."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._listening.fileno())
            self._listening.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.visitors.drop_silent(0.0)

    def _take(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, address = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno in _NO_DESCRIPTOR:
                    self._pause(exc)
                    return
                continue  # it has gone again
            if self._admits(connection):
                self._wait_for_word(connection, str(address[0]))
            else:
                connection.close()

    def _pause(self, exc: OSError) -> None:
        _log.error("no connection can be taken: %s", exc.strerror)
        self.visitors.drop_silent(0.0)
        self._loop.remove_reader(self._listening.fileno())
        self._loop.call_later(_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        if self._is_open:
            self._loop.add_reader(self._listening.fileno(), self._take)

    def _wait_for_word(self, connection: socket.socket, address: str) -> None:
        connection.setblocking(False)

        def drop() -> None:
            self._loop.remove_reader(connection.fileno())
            connection.close()

        def speaks() -> None:
            self._loop.remove_reader(connection.fileno())
            visitor.drop = connection.close  # until TLS has it
            self.visitors.spoke(visitor)
            task = self._loop.create_task(self._greet(connection, visitor))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        visitor = self.visitors.admit(address, drop)
        self._loop.add_reader(connection.fileno(), speaks)

    async def _greet(self, connection: socket.socket, visitor: Visitor) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        if connection.fileno() < 0:  # it had to go meanwhile
            self.visitors.left(visitor)
            return

        def give_up() -> None:
            task.cancel()

        visitor.drop = give_up
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._protocol(visitor),
                connection,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=_GOODBYE_S,
            )
        except (OSError, asyncio.CancelledError):  # TimeoutError and ssl.SSLError are of the former
            self.visitors.left(visitor)
            connection.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.visitors.drop_silent(SILENT_S)


def raise_descriptor_limit() -> int:
    """Let this process have as many open files as the system lets it, if that is not too many; returns how many."""
    now, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(now, DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS))
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def bound(host: str, port: int) -> socket.socket:
    """A TCP socket at this address, not yet listening.

    Raises:
        OSError: The address is not this machine's, or taken.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made
