"""The site's worker: the process that holds model and records from message to message, and answers one at a time.

It is started by the first message (`client/supernode/worker_process.py`). It ends when nothing has come for a while, or
when code, settings, policy or records have changed on the disk since it read them: then the next message finds a new
one. Killed at any moment, it loses nothing, for the node writes down what it must remember before anything leaves.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.supercore.task_identity import TaskIdentity

from fedglm.client.app import NodeContext, build_client_app
from fedglm.client.gate import OutboundGate
from fedglm.client.node import Node
from fedglm.client.site.folder import Site, open_site
from fedglm.client.site.settings import KIT_FILE, SITE_FILE
from fedglm.client.site.site_node import make_node
from fedglm.client.supernode.worker_link import AGAIN, LOG, MAX_BYTES, SOCKET, in_folder, send
from fedglm.core.code_identity import code_sha256
from fedglm.core.locks import hold_lock
from fedglm.privacy.custody.store import POLICY

LOCK = "worker.lock"
MAX_LOG_BYTES = 8 << 20
"""Length from which the worker's log is begun anew."""

IDLE_S = 1800.0
"""Seconds after which a worker that nobody asks ends, and gives its memory back."""


def app_of(site: Site) -> ClientApp:
    """The ClientApp of a site."""

    def place(_: Context) -> NodeContext:
        torch.set_num_threads(site.settings.site.threads)  # sums in other orders give other bits
        gate = OutboundGate(site.custody(), site.home, site.key(), encrypted=site.vault() is not None)

        def node() -> Node:
            return make_node(site, gate.plan, gate.envelope)

        return NodeContext(gate, node)

    return build_client_app(place)


def serve(folder: Path, idle_s: float = IDLE_S) -> None:
    """Answer messages until nothing comes, or something has changed.

    Args:
        folder: The site's.
        idle_s: Seconds to wait for a message.

    Raises:
        SiteError: The site's folder cannot be read.
    """
    site = open_site(folder)
    # Flower makes messages only in a process that it has given numbers to; it started this one's questioner, not this.
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    with hold_lock(site.state / LOCK) as alone:
        if not alone:
            return
        read = _fingerprint(site)
        app = app_of(site)
        _shorten(site.state / LOG)
        with _listening(site.state) as listening:
            listening.settimeout(idle_s)
            with contextlib.suppress(TimeoutError):
                while _serves(listening, app, site, read):
                    pass


def _serves(listening: socket.socket, app: ClientApp, site: Site, read: str) -> bool:
    """Answer one message; False when it was the last one."""
    accepted, _ = listening.accept()
    accepted.setblocking(True)
    with Connection(accepted.detach()) as connection, contextlib.suppress(EOFError, OSError, ValueError):
        words = json.loads(connection.recv_bytes(MAX_BYTES))
        content = connection.recv_bytes(MAX_BYTES)
        if _fingerprint(site) != read:
            connection.send_bytes(AGAIN)
            return False
        reply = app(_message(words, content), Context(0, 0, {}, RecordDict(), {}))
        if reply.has_error():
            send(connection, {"error": [reply.error.code, reply.error.reason]}, b"")
        else:
            send(connection, {"error": None}, recorddict_to_proto(reply.content).SerializeToString())
    _shorten(site.state / LOG)
    return True


def _shorten(log: Path) -> None:
    """Begin the log anew where it is long, and keep the one before: no server may fill the disk with its errors."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > MAX_LOG_BYTES:
            shutil.copyfile(log, log.with_suffix(".log.1"))
            log.with_suffix(".log.1").chmod(0o600)
            os.truncate(log, 0)  # who writes appends


def _message(words: dict[str, str], content: bytes) -> Message:
    record = recorddict_from_proto(RecordDictProto.FromString(content))
    message = Message(record, dst_node_id=1, message_type=words["kind"], group_id=words["group"])
    message.metadata.__dict__["_message_id"] = "worker"  # else no reply can be made of it
    return message


def _fingerprint(site: Site) -> str:
    """What the worker's memory was made of: code, settings, policy, and when the records were written."""
    whole = hashlib.sha256(code_sha256.__wrapped__().encode())
    policy = site.custody_folder / POLICY
    for path in (site.folder / SITE_FILE, site.folder / KIT_FILE, policy, policy.with_name(f"{POLICY}.sig")):
        with contextlib.suppress(FileNotFoundError):
            whole.update(path.read_bytes())
    named = (site.settings.data.public_reference, site.settings.model.path)
    for written in [Path(site.source), *(site.path(name) for name in named if name is not None)]:
        with contextlib.suppress(OSError):  # built-in data lie in no file
            found = os.stat(written)
            whole.update(f"{found.st_ino} {found.st_size} {found.st_mtime_ns}".encode())
    return whole.hexdigest()


@contextlib.contextmanager
def _listening(state: Path) -> Iterator[socket.socket]:
    path = state / SOCKET
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        before = os.umask(0o177)
        try:
            with in_folder(state) as here:
                listening.bind(f"{here}/{SOCKET}")
        finally:
            os.umask(before)
        listening.listen(8)
        try:
            yield listening
        finally:
            path.unlink(missing_ok=True)
