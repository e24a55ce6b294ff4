"""uvicorn's HTTP/1.1 over a connection that may be a stranger's: small heads, in time, one request after the other.

uvicorn has no time limit for a request's head, and its faster parser none for its length or for requests that are sent
ahead; h11 has the latter two.
"""

import asyncio
from typing import Any, Final

from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from fedglm.server.gateway.visitors import VISITOR, Visitor

HEAD_S: Final = 10.0
"""From the end of the handshake, or the first byte of a later request, to the end of its head."""

HEAD_BYTES: Final = 16384
"""Longest head; a node's has about 1,200 bytes."""


class GuardedHTTP(H11Protocol):
    """One connection.

    Args:
        config: uvicorn's.
        server_state: uvicorn's.
        app_state: What the application has put down for its requests; the visitor is added.
        visitor: Whose connection it is.
        head_s: Seconds that a head may take.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        visitor: Visitor,
        head_s: float = HEAD_S,
    ) -> None:
        super().__init__(config, server_state, {**app_state, VISITOR: visitor}, asyncio.get_running_loop())
        self._visitor, self._head_s = visitor, head_s
        self._clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The handshake is done."""
        super().connection_made(transport)
        self._visitor.drop = transport.abort
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Something has come; when it ends the head of a request, that has its task by now."""
        if self.transport.is_closing():
            return
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_clock()
        elif before is None or before.response_complete:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._stop_clock()
        self._visitor.book.left(self._visitor)
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._clock is None:
            self._clock = self.loop.call_later(self._head_s, self.transport.abort)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
