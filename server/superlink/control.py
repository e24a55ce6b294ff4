"""Client of Flower's Control interface, over TLS at 127.0.0.1: list nodes and runs, register and unregister nodes.

The project's folder `enrolled/` is authoritative: `reconcile` updates the SuperLink's list of nodes to match it.
"""

import contextlib
import datetime
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListNodesResponse,
    ListRunsRequest,
    ListRunsResponse,
    RegisterNodeRequest,
    RegisterNodeResponse,
    StopRunRequest,
    StopRunResponse,
    UnregisterNodeRequest,
    UnregisterNodeResponse,
)
from flwr.supercore.error import FlowerError
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fedglm.privacy.keys.site_identity import SiteIdentity
from fedglm.server.errors import ProjectError, UnreachableError
from fedglm.server.project.enrolment import read_enrolled_sites
from fedglm.server.project.folder import Project

UNREGISTERED = "unregistered"
"""Status of a node that was unregistered; Flower does not accept its key again."""

_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class EnrolledNode:
    """A node on the SuperLink's list.

    Attributes:
        node_id: Flower's id of the node.
        key: Public key of the node, as in `SiteIdentity.flower`.
        status: `registered` (and never connected), `online`, `offline`, or `UNREGISTERED`.
        last_seen: Time until which the node counts, or counted, as online, UTC; None before its first heartbeat.
    """

    node_id: int
    key: str
    status: str
    last_seen: datetime.datetime | None


@dataclass(frozen=True)
class Run:
    """A run on the SuperLink's list.

    Attributes:
        run_id: Flower's id of the run.
        status: Flower's status, such as `running` or `finished:completed`.
        started: Time of submission, UTC.
        uplink_bytes: Bytes received from the nodes, as counted by the SuperLink.
        downlink_bytes: Bytes sent to the nodes, as counted by the SuperLink.
    """

    run_id: int
    status: str
    started: str
    uplink_bytes: int
    downlink_bytes: int


@dataclass(frozen=True)
class Changes:
    """Changes that `reconcile` made.

    Attributes:
        registered: Names of the sites whose nodes were registered.
        removed: Flower's ids of the nodes that were unregistered.
        unusable: Names of enrolled sites whose key was unregistered before; the SuperLink accepts no key twice.
    """

    registered: tuple[str, ...]
    removed: tuple[int, ...]
    unusable: tuple[str, ...]


class Control:
    """Client of the SuperLink's Control interface; a context manager."""

    def __init__(self, project: Project) -> None:
        self._address = project.settings.control_address
        try:
            trust = ssl.create_default_context(cafile=str(project.authority))
        except OSError as exc:
            raise ProjectError(f"cannot read the authority {project.authority}: {exc}") from exc
        # Ignore a proxy that the environment names: this is the same machine.
        self._http = httpx.Client(verify=trust, timeout=_TIMEOUT_S, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def is_up(self) -> bool:
        """Return whether the SuperLink responds."""
        try:
            return self._http.get(f"https://{self._address}/health", timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False

    def list_nodes(self) -> list[EnrolledNode]:
        """List all nodes, including the unregistered ones.

        Raises:
            ProjectError: The SuperLink does not respond.
        """
        response = self._call("list-nodes", ListNodesRequest(), ListNodesResponse)
        return [
            EnrolledNode(
                node.node_id,
                load_pem_public_key(node.public_key).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
                node.status,
                _compute_last_seen(node.status, response.now, node.online_until),
            )
            for node in response.nodes_info
        ]

    def list_runs(self) -> list[Run]:
        """List all runs, the newest first.

        Raises:
            ProjectError: The SuperLink does not respond.
        """
        response = self._call("list-runs", ListRunsRequest(), ListRunsResponse)
        runs = sorted(response.run_dict.values(), key=lambda run: run.pending_at, reverse=True)
        return [
            Run(
                run.run_id,
                ":".join(filter(None, (run.status.status, run.status.sub_status))),
                run.pending_at,
                run.bytes_recv,
                run.bytes_sent,
            )
            for run in runs
        ]

    def stop_run(self, run_id: int) -> None:
        """Stop a run.

        Raises:
            ProjectError: The SuperLink does not respond, or the run has ended already.
        """
        if not self._call("stop-run", StopRunRequest(run_id=run_id), StopRunResponse).success:
            raise ProjectError(f"the SuperLink does not end the run {run_id}: see fedglm server status")

    def register_node(self, identity: SiteIdentity) -> int:
        """Register a site's node.

        Returns:
            Flower's id of the node.

        Raises:
            ProjectError: The SuperLink does not respond, or rejects the key.
        """
        key = load_ssh_public_key(identity.flower.encode())
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        request = RegisterNodeRequest(public_key=pem, name=identity.name)
        return int(self._call("register-node", request, RegisterNodeResponse).node_id)

    def unregister_node(self, node_id: int) -> None:
        """Unregister a node: its next request is rejected.

        Raises:
            ProjectError: The SuperLink does not respond, or has no such node.
        """
        self._call("unregister-node", UnregisterNodeRequest(node_id=node_id), UnregisterNodeResponse)

    def _call(self, name: str, request: Any, response_type: Callable[[], Any]) -> Any:
        status, content = self._post(f"/v1/control/{name}", request.SerializeToString())
        if status != 200:
            text = content.decode(errors="replace")
            error = FlowerError.from_json(text)
            reason = error.message if error is not None else text[:200]
            raise ProjectError(f"the SuperLink refuses {name} ({status}): {reason}")
        response = response_type()
        try:
            response.ParseFromString(content)
        except DecodeError as exc:
            raise ProjectError(f"the SuperLink answers {name} with something else: is it another Flower?") from exc
        return response

    def _post(self, path: str, content: bytes) -> tuple[int, bytes]:
        """Send a request; return status and body of the response."""
        try:
            response = self._http.post(
                f"https://{self._address}{path}",
                content=content,
                headers={"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE},
            )
        except httpx.HTTPError as exc:
            raise UnreachableError(f"the SuperLink does not answer at {self._address}: {exc}") from exc
        return response.status_code, response.content


def reconcile(project: Project, control: Control) -> Changes:
    """Register the nodes of the enrolled sites, and unregister all others.

    Raises:
        ProjectError: The SuperLink does not respond, or rejects a request.
        PrivacyError: A site's public keys are damaged.
    """
    sites = read_enrolled_sites(project)
    nodes = {node.key: node for node in control.list_nodes()}
    keys = {identity.flower for identity in sites.values()}
    others = [node.node_id for node in nodes.values() if node.key not in keys and node.status != UNREGISTERED]
    for node_id in others:  # first: a revoked site is rejected even if a later step fails
        control.unregister_node(node_id)
    registered, unusable = [], []
    for name, identity in sites.items():
        if identity.flower not in nodes:
            control.register_node(identity)
            registered.append(name)
        elif nodes[identity.flower].status == UNREGISTERED:
            unusable.append(name)
    return Changes(tuple(registered), tuple(others), tuple(unusable))


def list_nodes(project: Project) -> list[EnrolledNode]:
    """List the SuperLink's nodes, over a connection of its own.

    Raises:
        ProjectError: The SuperLink does not respond.
    """
    with Control(project) as control:
        return control.list_nodes()


def stop_orphaned_runs(control: Control) -> int:
    """Stop the runs whose process died with the last SuperLink: Flower would wait a minute for each.

    Only for a SuperLink that has just started.

    Returns:
        Number of the runs; a command that waits for one of them submits it again.

    Raises:
        ProjectError: The SuperLink does not respond.
    """
    orphans = [run.run_id for run in control.list_runs() if run.status in ("starting", "running")]
    for run_id in orphans:
        with contextlib.suppress(ProjectError):  # the run has ended meanwhile
            control.stop_run(run_id)
    return len(orphans)


def _compute_last_seen(status: str, now: str, online_until: float) -> datetime.datetime | None:
    if not online_until:
        return None
    if status == "online":
        return datetime.datetime.fromisoformat(now)
    return datetime.datetime.fromtimestamp(online_until, datetime.UTC)
