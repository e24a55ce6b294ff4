"""Bounds on what a node accepts from its server: bytes of a response, parts of a message, time; and no redirects.

The server is authenticated by its certificate, and is not trusted. Flower's node reads responses of any length into
memory, unpacks compressed ones and archives, and follows redirects: for example to another port of the site's own
network, with the update that it sends. Here a response is read as it comes, within bounds, and a redirect is an error.
"""

import importlib
import logging
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import httpx
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supernode.fleet_http_client import FleetHttpClient

LOG: Final = logging.getLogger(__name__)

MAX_MESSAGE_BYTES: Final = 256 * 2**20
"""Maximum size of a message with all its parts: a snapshot of 128 million parameters in FP16."""

MAX_PARTS: Final = 1024
"""Maximum number of parts of a message; ours have four."""

MAX_BUNDLE_BYTES: Final = 16384
"""Maximum size of an app's bundle; ours has 649 bytes, and is not unpacked."""

MAX_RUNS: Final = 1000
"""Maximum number of runs that a node keeps in memory; with one more it restarts."""

_MAX_RESPONSE_BYTES: Final = 2**20
_MAX_BYTES_BY_PATH: Final[Mapping[str, int]] = MappingProxyType({"/v1/fleet/pull-object": MAX_MESSAGE_BYTES})
_MAX_RESPONSE_S: Final = 1800.0
"""Maximum time from the head of a response to its end."""


class ServerBoundsError(httpx.RemoteProtocolError):
    """The server's response is out of bounds; the node tries again later."""


class BoundedFleetClient(FleetHttpClient):
    """Flower's client of the server's interface for nodes, within bounds; the arguments are Flower's."""

    def __init__(self, base_url: str, *, verify: ssl.SSLContext | str | bool = True, **options: Any) -> None:
        context = ssl.create_default_context(cafile=verify) if isinstance(verify, str) else verify
        if not isinstance(context, ssl.SSLContext):
            raise TypeError("a node trusts one authority, which must be given")
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        super().__init__(base_url, verify=context, **options)
        self._client = make_bounded_client(context, self._client.timeout)


def make_bounded_client(context: ssl.SSLContext, timeout: httpx.Timeout | float) -> httpx.Client:
    """Make an HTTP client that refuses responses out of bounds.

    Args:
        context: TLS context with the trusted authority.
        timeout: Maximum time without a byte, in seconds.
    """
    return httpx.Client(
        verify=context,
        timeout=timeout,
        follow_redirects=False,
        headers={"accept-encoding": "identity"},
        event_hooks={"response": [_check_response]},
    )


def install_bounds() -> None:
    """Make the SuperNode of this process apply the bounds; call it before the SuperNode starts."""
    connection = importlib.import_module("flwr.supernode.fleet_http_connection")
    flower = importlib.import_module("flwr.supernode.start_client_internal")
    vars(connection)["FleetHttpClient"] = BoundedFleetClient
    pull, bounds = vars(flower)["_pull_and_store_message"], _MessageBounds()

    def pull_within_bounds(**callbacks: Any) -> int | None:
        run_id: int | None = pull(**bounds.wrap(callbacks))
        return run_id

    # Our app uses no settings of the bundle, and reading them would unpack it.
    vars(flower).update(_pull_and_store_message=pull_within_bounds, get_fused_config_from_fab=lambda *_: {})


class _MessageBounds:
    """Counts the bytes of a message, and the runs."""

    def __init__(self) -> None:
        self._left = MAX_MESSAGE_BYTES
        self._runs: set[int] = set()

    def wrap(self, callbacks: Mapping[str, Any]) -> dict[str, Any]:
        """Wrap Flower's callbacks so that each raises where its bounds are exceeded."""
        receive, pull_object, get_run, get_fab = (
            callbacks[name] for name in ("receive", "pull_object", "get_run", "get_fab")
        )

        def receive_within() -> Any:
            self._left = MAX_MESSAGE_BYTES
            if (received := receive()) is not None:
                _check_parts(received[1])
            return received

        def pull_within(run_id: int, object_id: str) -> bytes:
            content: bytes = pull_object(run_id, object_id)
            self._left -= len(content)
            if self._left < 0:
                raise ServerBoundsError(f"a message is longer than {MAX_MESSAGE_BYTES} bytes")
            return content

        def run_within(run_id: int) -> Any:
            self._runs.add(run_id)
            if len(self._runs) > MAX_RUNS:
                raise RuntimeError(f"{MAX_RUNS} runs are enough for one life: the node begins anew")
            return get_run(run_id)

        def fab_within(digest: str, run_id: int) -> Any:
            bundle = get_fab(digest, run_id)
            if len(bundle.content) > MAX_BUNDLE_BYTES:
                raise ServerBoundsError(f"an app's bundle has more than {MAX_BUNDLE_BYTES} bytes")
            return bundle

        wrapped: dict[str, Callable[..., Any]] = {
            "receive": receive_within,
            "pull_object": pull_within,
            "get_run": run_within,
            "get_fab": fab_within,
        }
        return {**callbacks, **wrapped}


def _check_parts(tree: Any) -> None:
    for count, _ in enumerate(iterate_object_tree(tree)):
        if count >= MAX_PARTS:
            raise ServerBoundsError(f"a message has more than {MAX_PARTS} parts")


def _check_response(response: httpx.Response) -> None:
    """Refuse a response whose head is out of bounds, and bound its body while that is read."""
    limit = _MAX_BYTES_BY_PATH.get(response.request.url.path, _MAX_RESPONSE_BYTES)
    length = response.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > limit:
        raise _make_error(f"it has {length[:20]} bytes, at most {limit} are read")
    if response.is_success and response.headers.get("content-type") != PROTOBUF_MEDIA_TYPE:
        raise _make_error("it is not of Flower's protocol")  # an empty page would pass for an empty message
    if response.headers.get("content-encoding", "identity") != "identity":
        raise _make_error("it is compressed, which was not asked for")
    if not isinstance(response.stream, httpx.SyncByteStream):
        raise TypeError("a synchronous client reads synchronous streams")
    response.stream = _BoundedStream(response.stream, limit)


class _BoundedStream(httpx.SyncByteStream):
    """Body of a response, with a maximum length and a deadline."""

    def __init__(self, stream: httpx.SyncByteStream, limit: int) -> None:
        self._stream, self._limit = stream, limit

    def __iter__(self) -> Iterator[bytes]:
        left, deadline = self._limit, time.monotonic() + _MAX_RESPONSE_S
        for chunk in self._stream:
            left -= len(chunk)
            if left < 0:
                raise _make_error(f"it has more than {self._limit} bytes")
            if time.monotonic() > deadline:
                raise _make_error(f"it takes longer than {_MAX_RESPONSE_S:g} s")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _make_error(reason: str) -> ServerBoundsError:
    LOG.error("an answer of the server is not taken: %s", reason)
    return ServerBoundsError(reason)
