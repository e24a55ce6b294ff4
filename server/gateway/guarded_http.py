"""uvicorn's HTTP/1.1 for unauthenticated clients: headers of limited size and time, one request after the other.

uvicorn has no time limit for a request's headers, and its faster parser limits neither their length nor pipelined
requests; h11 limits both.
"""

import asyncio
from typing import Any, Final

from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from fedglm.server.gateway.connections import CONNECTION, Connection

HEADERS_TIMEOUT_S: Final = 10.0
"""Maximum seconds from the end of the handshake, or the first byte of a later request, to the end of its headers."""

MAX_HEADERS_BYTES: Final = 16384
"""Maximum bytes of request line and headers; a node's have about 1,200."""


class GuardedHTTP(H11Protocol):
    """HTTP/1.1 protocol of one connection, with a timeout for headers.

    Args:
        config: uvicorn's configuration.
        server_state: uvicorn's server state.
        app_state: State that the application shares with its requests; the connection is added to it.
        connection: Entry of the connection in the port's table.
        headers_timeout_s: Maximum seconds for a request's headers.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        connection: Connection,
        headers_timeout_s: float = HEADERS_TIMEOUT_S,
    ) -> None:
        super().__init__(config, server_state, {**app_state, CONNECTION: connection}, asyncio.get_running_loop())
        self._connection, self._headers_timeout_s = connection, headers_timeout_s
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin after the TLS handshake; the first request's headers must arrive in time."""
        super().connection_made(transport)
        self._connection.abort = transport.abort
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Process received bytes; once the headers of a request are complete, uvicorn has started its task."""
        if self.transport.is_closing():
            return
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_timer()
        elif before is None or before.response_complete:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from the port's table."""
        self._stop_timer()
        self._connection.table.remove(self._connection)
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self._headers_timeout_s, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
