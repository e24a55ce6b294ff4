"""What the server's own machine may ask the SuperLink: which nodes and runs there are; to register and take off nodes.

Flower's Control interface, over TLS, at 127.0.0.1. The project's `enrolled/` is the truth: `reconcile` brings the
SuperLink's list in line with it.
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
from fedglm.server.errors import AwayError, ProjectError
from fedglm.server.project.enrolment import enrolled_sites
from fedglm.server.project.folder import Project

REMOVED = "unregistered"
"""Status of a node that was taken off the list; its key is not taken again."""

_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class EnrolledNode:
    """A node on the SuperLink's list.

    Attributes:
        node_id: Flower's number of it.
        key: Its public key, as in `SiteIdentity.flower`.
        status: `registered` (and never seen), `online`, `offline`, or `REMOVED`.
        last_seen: Until when it counts, or counted, as online, UTC; None before its first sign of life.
    """

    node_id: int
    key: str
    status: str
    last_seen: datetime.datetime | None


@dataclass(frozen=True)
class Run:
    """A run on the SuperLink's list.

    Attributes:
        run_id: Flower's number of it.
        status: As in `running` or `finished:completed`.
        started: When it was submitted, UTC.
        uplink_bytes: What the nodes sent, by the SuperLink's count.
        downlink_bytes: What they were sent.
    """

    run_id: int
    status: str
    started: str
    uplink_bytes: int
    downlink_bytes: int


@dataclass(frozen=True)
class Changes:
    """What `reconcile` did.

    Attributes:
        registered: Names of sites that are new on the list.
        removed: Flower's numbers of nodes that were taken off it.
        unusable: Names of enrolled sites whose key was taken off before; the SuperLink takes no key twice.
    """

    registered: tuple[str, ...]
    removed: tuple[int, ...]
    unusable: tuple[str, ...]


class Control:
    """A connection to the SuperLink's Control interface; a context manager."""

    def __init__(self, project: Project) -> None:
        self._address = project.settings.control_address
        try:
            trust = ssl.create_default_context(cafile=str(project.authority))
        except OSError as exc:
            raise ProjectError(f"cannot read the authority {project.authority}: {exc}") from exc
        # Not through a proxy that the environment names: this is the same machine.
        self._http = httpx.Client(verify=trust, timeout=_TIMEOUT_S, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def answers(self) -> bool:
        """Whether the SuperLink is up."""
        try:
            return self._http.get(f"https://{self._address}/health", timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False

    def nodes(self) -> list[EnrolledNode]:
        """All nodes, also those that were taken off the list.

        Raises:
            ProjectError: The SuperLink does not answer.
        """
        answer = self._call("list-nodes", ListNodesRequest(), ListNodesResponse)
        return [
            EnrolledNode(
                node.node_id,
                load_pem_public_key(node.public_key).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
                node.status,
                _last_seen(node.status, answer.now, node.online_until),
            )
            for node in answer.nodes_info
        ]

    def runs(self) -> list[Run]:
        """All runs, the newest first.

        Raises:
            ProjectError: The SuperLink does not answer.
        """
        answer = self._call("list-runs", ListRunsRequest(), ListRunsResponse)
        found = sorted(answer.run_dict.values(), key=lambda run: run.pending_at, reverse=True)
        return [
            Run(
                run.run_id,
                ":".join(filter(None, (run.status.status, run.status.sub_status))),
                run.pending_at,
                run.bytes_recv,
                run.bytes_sent,
            )
            for run in found
        ]

    def stop(self, run_id: int) -> None:
        """End a run.

        Raises:
            ProjectError: The SuperLink does not answer, or the run has ended already.
        """
        if not self._call("stop-run", StopRunRequest(run_id=run_id), StopRunResponse).success:
            raise ProjectError(f"the SuperLink does not end the run {run_id}: see fedglm server status")

    def register(self, identity: SiteIdentity) -> int:
        """Put a site's node on the list.

        Returns:
            Flower's number of it.

        Raises:
            ProjectError: The SuperLink does not answer, or refuses the key.
        """
        key = load_ssh_public_key(identity.flower.encode())
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        request = RegisterNodeRequest(public_key=pem, name=identity.name)
        return int(self._call("register-node", request, RegisterNodeResponse).node_id)

    def remove(self, node_id: int) -> None:
        """Take a node off the list: from its next request on it is turned away.

        Raises:
            ProjectError: The SuperLink does not answer, or knows no such node.
        """
        self._call("unregister-node", UnregisterNodeRequest(node_id=node_id), UnregisterNodeResponse)

    def _call(self, name: str, request: Any, answer: Callable[[], Any]) -> Any:
        status, content = self._post(f"/v1/control/{name}", request.SerializeToString())
        if status != 200:
            text = content.decode(errors="replace")
            error = FlowerError.from_json(text)
            reason = error.message if error is not None else text[:200]
            raise ProjectError(f"the SuperLink refuses {name} ({status}): {reason}")
        found = answer()
        try:
            found.ParseFromString(content)
        except DecodeError as exc:
            raise ProjectError(f"the SuperLink answers {name} with something else: is it another Flower?") from exc
        return found

    def _post(self, path: str, content: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        try:
            response = self._http.post(
                f"https://{self._address}{path}",
                content=content,
                headers={"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE},
            )
        except httpx.HTTPError as exc:
            raise AwayError(f"the SuperLink does not answer at {self._address}: {exc}") from exc
        return response.status_code, response.content


def reconcile(project: Project, control: Control) -> Changes:
    """Register the enrolled sites, and take off the list whoever is not enrolled.

    Raises:
        ProjectError: The SuperLink does not answer, or refuses.
        PrivacyError: What a site handed over is damaged.
    """
    sites = enrolled_sites(project)
    on_list = {node.key: node for node in control.nodes()}
    keys = {identity.flower for identity in sites.values()}
    others = [node.node_id for node in on_list.values() if node.key not in keys and node.status != REMOVED]
    for node_id in others:  # first: who is revoked should be out whatever comes after
        control.remove(node_id)
    registered, unusable = [], []
    for name, identity in sites.items():
        if identity.flower not in on_list:
            control.register(identity)
            registered.append(name)
        elif on_list[identity.flower].status == REMOVED:
            unusable.append(name)
    return Changes(tuple(registered), tuple(others), tuple(unusable))


def end_orphans(control: Control) -> int:
    """End the runs whose process died with the last SuperLink: Flower would wait a minute for each.

    Only for a SuperLink that has just started.

    Returns:
        How many there were; who waits for one of them hands it over again.

    Raises:
        ProjectError: The SuperLink does not answer.
    """
    orphans = [run.run_id for run in control.runs() if run.status in ("starting", "running")]
    for run_id in orphans:
        with contextlib.suppress(ProjectError):  # it has ended meanwhile
            control.stop(run_id)
    return len(orphans)


def _last_seen(status: str, now: str, online_until: float) -> datetime.datetime | None:
    if not online_until:
        return None
    if status == "online":
        return datetime.datetime.fromisoformat(now)
    return datetime.datetime.fromtimestamp(online_until, datetime.UTC)
