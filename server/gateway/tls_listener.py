"""A listening port of the SuperLink: connections are counted before they cost memory; TLS begins with the first byte.

A connection that sends nothing costs a descriptor. uvicorn would set up TLS for it, which takes a third of a MiB per
connection, wait for a minute, and accept as many as the process may have descriptors: then no site could connect.
"""

import asyncio
import errno
import logging
import resource
import socket
import ssl
from collections.abc import Callable
from typing import Final

from fedglm.server.gateway.connections import Connection, ConnectionTable

FIRST_BYTE_TIMEOUT_S: Final = 10.0
"""Maximum seconds from the connection to its first byte; a node sends it at once."""

HANDSHAKE_TIMEOUT_S: Final = 10.0
MAX_DESCRIPTORS: Final = 65536
"""Useful maximum of open files; the services in docs/deploy request as many."""

_SHUTDOWN_TIMEOUT_S: Final = 2.0  # for the client to end TLS too
_BACKLOG: Final = 2048
_ACCEPTS_PER_EVENT: Final = 64  # connections accepted before the event loop continues
_RETRY_DELAY_S: Final = 0.2  # where the process has no descriptor left
_OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_log = logging.getLogger("uvicorn.error")


class TlsListener:
    """Accepts connections on a socket, and runs a protocol over TLS on those that send a byte.

    Args:
        listening: Bound socket, not listening yet.
        context: TLS context.
        protocol: Makes the protocol of a connection.
        accepts: Whether a connection is accepted at all; called as soon as it is made.
        connections: Table of the port's connections; None for one with default limits.
    """

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext,
        protocol: Callable[[Connection], asyncio.Protocol],
        *,
        accepts: Callable[[socket.socket], bool] = lambda _: True,
        connections: ConnectionTable | None = None,
    ) -> None:
        self._listening, self._context, self._protocol, self._accepts = listening, context, protocol, accepts
        self.connections = connections or ConnectionTable()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._is_open = False

    def open(self) -> None:
        """Accept connections from now on."""
        self._listening.setblocking(False)
        self._listening.listen(_BACKLOG)
        self._is_open = True
        self._loop.add_reader(self._listening.fileno(), self._accept)
        self._sweeper = self._loop.create_task(self._sweep())

    def close(self) -> None:
        """Accept no more connections, and close the silent ones; others stay."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._listening.fileno())
            self._listening.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.connections.drop_silent(0.0)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_EVENT):
            try:
                client, address = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno in _OUT_OF_RESOURCES:
                    self._pause(exc)
                    return
                continue  # the client has disconnected again
            if self._accepts(client):
                self._await_first_byte(client, str(address[0]))
            else:
                client.close()

    def _pause(self, exc: OSError) -> None:
        _log.error("no connection can be taken: %s", exc.strerror)
        self.connections.drop_silent(0.0)
        self._loop.remove_reader(self._listening.fileno())
        self._loop.call_later(_RETRY_DELAY_S, self._resume)

    def _resume(self) -> None:
        if self._is_open:
            self._loop.add_reader(self._listening.fileno(), self._accept)

    def _await_first_byte(self, client: socket.socket, address: str) -> None:
        client.setblocking(False)

        def abort() -> None:
            self._loop.remove_reader(client.fileno())
            client.close()

        def start() -> None:
            self._loop.remove_reader(client.fileno())
            connection.abort = client.close  # until the handshake's task has begun
            self.connections.mark_unauthenticated(connection)
            task = self._loop.create_task(self._start_tls(client, connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        connection = self.connections.add(address, abort)
        self._loop.add_reader(client.fileno(), start)

    async def _start_tls(self, client: socket.socket, connection: Connection) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        if client.fileno() < 0:  # the connection was dropped meanwhile
            self.connections.remove(connection)
            return

        def cancel() -> None:
            task.cancel()

        connection.abort = cancel
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._protocol(connection),
                client,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                ssl_shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
            )
        except (OSError, asyncio.CancelledError):  # TimeoutError and ssl.SSLError are subclasses of the former
            self.connections.remove(connection)
            client.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.connections.drop_silent(FIRST_BYTE_TIMEOUT_S)


def raise_descriptor_limit() -> int:
    """Raise this process's limit of open files as far as the system permits and is useful; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(soft, MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def bind_socket(host: str, port: int) -> socket.socket:
    """Return a TCP socket that is bound to this address and not listening yet.

    Raises:
        OSError: The address is not this machine's, or in use.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
