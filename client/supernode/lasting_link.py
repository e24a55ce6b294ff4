"""The link to the server lasts: whatever a request fails by, the node tries again, for ever and at most 20 s apart.

Flower gives up after a failed TLS handshake, an expired certificate, a proxy's refusal, an answer of another service in
the server's place and a rejected key; any of these is mended elsewhere, hours later perhaps, and nobody is at the site
to start the node again. Here each of them is a failed connection to Flower, which it repeats. Only what the server says
of a run or a message passes as it is.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar, Final

import httpx
from flwr.supercore.error import FlowerError

from fedglm.client.link.faults import LinkFault, find_fault
from fedglm.client.link.state import LinkRecorder
from fedglm.client.supernode.server_bounds import BoundedFleetClient, ServerBoundsError

_ACTIVATE: Final = "/v1/fleet/activate-node"
_UNAVAILABLE: Final = frozenset({502, 503, 504})


class NoLinkError(httpx.ConnectError):
    """A request has not reached the server, or its answer was not the server's; Flower tries it again.

    Its text is empty of reasons, because Flower looks for words there, and gives up when it finds some.
    """

    def __init__(self) -> None:
        super().__init__("there is no link to the server")


class LastingFleetClient(BoundedFleetClient):
    """The bounded client, whose failures are all such as Flower repeats; `recorder` hears how each request ends."""

    recorder: ClassVar[LinkRecorder]

    def _unary_unary(self, *, path: str, **arguments: Any) -> Any:
        try:
            response = super()._unary_unary(path=path, **arguments)
        except httpx.HTTPStatusError as exc:
            if (
                _is_of_flower(exc.response)
                and path != _ACTIVATE
                and exc.response.status_code != httpx.codes.UNAUTHORIZED
            ):
                self.recorder.succeed()
                raise
            self.recorder.fail(_find_status_fault(exc.response))
            raise NoLinkError from exc
        except (httpx.HTTPError, ValueError) as exc:
            self.recorder.fail(_find_transport_fault(exc))
            raise NoLinkError from exc
        self.recorder.succeed()
        return response


def install_lasting_link(recorder: LinkRecorder) -> None:
    """Make the SuperNode of this process use the lasting client; call it after `install_bounds`.

    Args:
        recorder: Hears how each request ends.
    """
    LastingFleetClient.recorder = recorder
    connection: Any = importlib.import_module("flwr.supernode.fleet_http_connection")
    vars(connection)["FleetHttpClient"] = LastingFleetClient


def _find_transport_fault(error: httpx.HTTPError | ValueError) -> LinkFault:
    if isinstance(error, httpx.ProxyError):
        return LinkFault.PROXY
    if isinstance(error, ServerBoundsError) or not isinstance(error, httpx.TransportError):
        return LinkFault.OTHER_SERVICE  # an answer, and none of the protocol
    return find_fault(error)


def _is_of_flower(response: httpx.Response) -> bool:
    """Return whether the body of an error is Flower's, and not that of a proxy or of another service."""
    return FlowerError.from_json(response.text) is not None


def _find_status_fault(response: httpx.Response) -> LinkFault:
    if response.status_code in _UNAVAILABLE:
        return LinkFault.UNAVAILABLE
    if response.status_code == httpx.codes.UNAUTHORIZED or _is_of_flower(response):
        return LinkFault.NOT_ADMITTED
    if response.status_code == httpx.codes.PROXY_AUTHENTICATION_REQUIRED:
        return LinkFault.PROXY
    return LinkFault.OTHER_SERVICE
