"""What a node takes from its server, at most: bytes of an answer, parts of a message, time; and nothing from elsewhere.

The server is known by its certificate, and is not trusted. Flower's node reads answers of any length into memory,
unpacks compressed ones and archives, and follows redirections: to another port of the site's own network, say, with the
update that it sends. Here an answer is read as it comes, within bounds, and a redirection is no answer.
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
from flwr.supernode.fleet_http_client import FleetHttpClient

LOG: Final = logging.getLogger(__name__)

MODEL_BYTES: Final = 256 * 2**20
"""Longest message, with all its parts: a snapshot of 128 million parameters in FP16."""

PARTS_AT_MOST: Final = 1024
"""Parts of one message; ours have four."""

BUNDLE_BYTES: Final = 16384
"""Longest bundle of an app; ours has 649 bytes, and is not unpacked."""

RUNS_AT_MOST: Final = 1000
"""Runs that a node remembers; with one more it begins anew."""

_WORDS_BYTES: Final = 2**20
_LONGEST: Final[Mapping[str, int]] = MappingProxyType({"/v1/fleet/pull-object": MODEL_BYTES})
_ANSWER_S: Final = 1800.0
"""From the head of an answer to its end."""


class ServerBoundsError(httpx.RemoteProtocolError):
    """The server's answer is out of bounds; a node tries again later."""


class BoundedFleetClient(FleetHttpClient):
    """Flower's client of the server's interface for nodes, within bounds; arguments as Flower's."""

    def __init__(self, base_url: str, *, verify: ssl.SSLContext | str | bool = True, **options: Any) -> None:
        context = ssl.create_default_context(cafile=verify) if isinstance(verify, str) else verify
        if not isinstance(context, ssl.SSLContext):
            raise TypeError("a node trusts one authority, which must be given")
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        super().__init__(base_url, verify=context, **options)
        self._client = bounded_client(context, self._client.timeout)


def bounded_client(context: ssl.SSLContext, timeout: httpx.Timeout | float) -> httpx.Client:
    """An HTTP client that refuses what is out of bounds.

    Args:
        context: Whom to trust.
        timeout: Seconds without a byte.
    """
    return httpx.Client(
        verify=context,
        timeout=timeout,
        follow_redirects=False,
        headers={"accept-encoding": "identity"},
        event_hooks={"response": [_bound]},
    )


def bound_messages() -> None:
    """Bound what the SuperNode of this process takes from its server; to be called before it starts."""
    connection = importlib.import_module("flwr.supernode.fleet_http_connection")
    flower = importlib.import_module("flwr.supernode.start_client_internal")
    vars(connection)["FleetHttpClient"] = BoundedFleetClient
    pull, messages = vars(flower)["_pull_and_store_message"], _Messages()

    def pull_within_bounds(**named: Any) -> int | None:
        run_id: int | None = pull(**messages.bounded(named))
        return run_id

    # Of the bundle's settings ours uses none, and to read them is to unpack it.
    vars(flower).update(_pull_and_store_message=pull_within_bounds, get_fused_config_from_fab=lambda *_: {})


class _Messages:
    """Counts what belongs to one message, and how many runs there were."""

    def __init__(self) -> None:
        self._left = MODEL_BYTES
        self._runs: set[int] = set()

    def bounded(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """Flower's callbacks, each held to its bounds."""
        receive, pull_object, get_run, get_fab = (
            named[name] for name in ("receive", "pull_object", "get_run", "get_fab")
        )

        def receive_within() -> Any:
            self._left = MODEL_BYTES
            if (received := receive()) is not None:
                _check_parts(received[1])
            return received

        def pull_within(run_id: int, object_id: str) -> bytes:
            content: bytes = pull_object(run_id, object_id)
            self._left -= len(content)
            if self._left < 0:
                raise ServerBoundsError(f"a message is longer than {MODEL_BYTES} bytes")
            return content

        def run_within(run_id: int) -> Any:
            self._runs.add(run_id)
            if len(self._runs) > RUNS_AT_MOST:
                raise RuntimeError(f"{RUNS_AT_MOST} runs are enough for one life: the node begins anew")
            return get_run(run_id)

        def fab_within(digest: str, run_id: int) -> Any:
            bundle = get_fab(digest, run_id)
            if len(bundle.content) > BUNDLE_BYTES:
                raise ServerBoundsError(f"an app's bundle has more than {BUNDLE_BYTES} bytes")
            return bundle

        callbacks: dict[str, Callable[..., Any]] = {
            "receive": receive_within,
            "pull_object": pull_within,
            "get_run": run_within,
            "get_fab": fab_within,
        }
        return {**named, **callbacks}


def _check_parts(tree: Any) -> None:
    for count, _ in enumerate(iterate_object_tree(tree)):
        if count >= PARTS_AT_MOST:
            raise ServerBoundsError(f"a message has more than {PARTS_AT_MOST} parts")


def _bound(response: httpx.Response) -> None:
    """Refuse an answer that is out of bounds by its head, and stop one that turns out to be while it is read."""
    limit = _LONGEST.get(response.request.url.path, _WORDS_BYTES)
    length = response.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > limit:
        raise _fault(f"it has {length[:20]} bytes, at most {limit} are read")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise _fault("it is compressed, which was not asked for")
    if not isinstance(response.stream, httpx.SyncByteStream):
        raise TypeError("a synchronous client reads synchronous streams")
    response.stream = _Bounded(response.stream, limit)


class _Bounded(httpx.SyncByteStream):
    """The body of an answer, read to a length and for a time."""

    def __init__(self, stream: httpx.SyncByteStream, limit: int) -> None:
        self._stream, self._limit = stream, limit

    def __iter__(self) -> Iterator[bytes]:
        left, deadline = self._limit, time.monotonic() + _ANSWER_S
        for chunk in self._stream:
            left -= len(chunk)
            if left < 0:
                raise _fault(f"it has more than {self._limit} bytes")
            if time.monotonic() > deadline:
                raise _fault(f"it takes longer than {_ANSWER_S:g} s")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _fault(reason: str) -> ServerBoundsError:
    LOG.error("an answer of the server is not taken: %s", reason)
    return ServerBoundsError(reason)
