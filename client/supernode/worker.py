"""The site's worker: the process that keeps model and records in memory, and answers one message at a time.

The first message starts it (`client/supernode/worker_process.py`). It ends when no message has come for a while, or
when code, settings, policy or records have changed on the disk since it read them: then the next message starts a new
one. Killed at any moment, it loses nothing, because the node stores its state before anything leaves.
"""

import contextlib
import hashlib
import json
import os
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
from fedglm.client.site.folder import Site, open_site
from fedglm.client.site.settings import KIT_FILE, SITE_FILE
from fedglm.client.site.site_node import make_node
from fedglm.client.supernode.worker_link import LOG, MAX_BYTES, SOCKET, STALE, open_short_path, send
from fedglm.core.code_identity import code_sha256
from fedglm.core.locks import hold_lock
from fedglm.core.log_rotation import rotate_log
from fedglm.privacy.custody.store import POLICY

LOCK = "worker.lock"
"""Name of the lock file, in the site's state folder, that the running worker holds."""

MAX_LOG_BYTES = 8 << 20
"""Size from which the worker's log is rotated."""

IDLE_S = 1800.0
"""Seconds without a message after which a worker ends, and frees its memory."""


def make_site_app(site: Site) -> ClientApp:
    """Make the ClientApp of a site."""

    def resolve(_: Context) -> NodeContext:
        torch.set_num_threads(site.settings.site.threads)  # the order of sums, and with it their bits, depends on it
        gate = OutboundGate(site.custody(), site.home, site.key(), encrypted=site.vault() is not None)
        return NodeContext(
            gate, lambda: make_node(site, gate.plan, gate.envelope), site.light_shelf(), site.model_shelf()
        )

    return build_client_app(resolve)


def serve(folder: Path, idle_s: float = IDLE_S) -> None:
    """Answer messages until none comes, or an input of the worker has changed; return at once where a worker runs.

    Args:
        folder: Folder of the site.
        idle_s: Seconds to wait for a message.

    Raises:
        SiteError: The site's folder cannot be read.
    """
    site = open_site(folder)
    # Flower makes messages only in a process with a task identity, which it has given to the SuperNode, and not to us.
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    with hold_lock(site.state / LOCK) as is_held:
        if not is_held:
            return
        inputs_sha256 = _hash_inputs(site)
        app = make_site_app(site)
        rotate_log(site.state / LOG, MAX_LOG_BYTES)
        with _listen(site.state) as listener:
            listener.settimeout(idle_s)
            with contextlib.suppress(TimeoutError):
                while _serve_one(listener, app, site, inputs_sha256):
                    pass


def _serve_one(listener: socket.socket, app: ClientApp, site: Site, inputs_sha256: str) -> bool:
    """Answer one message; return False where the worker's inputs have changed, so that it must end."""
    accepted, _ = listener.accept()
    accepted.setblocking(True)
    with Connection(accepted.detach()) as connection, contextlib.suppress(EOFError, OSError, ValueError):
        header = json.loads(connection.recv_bytes(MAX_BYTES))
        content = connection.recv_bytes(MAX_BYTES)
        if _hash_inputs(site) != inputs_sha256:
            connection.send_bytes(STALE)
            return False
        reply = app(_make_message(header, content), Context(0, 0, {}, RecordDict(), {}))
        if reply.has_error():
            send(connection, {"error": [reply.error.code, reply.error.reason]}, b"")
        else:
            send(connection, {"error": None}, recorddict_to_proto(reply.content).SerializeToString())
    rotate_log(site.state / LOG, MAX_LOG_BYTES)  # no server may fill the disk by causing errors
    return True


def _make_message(header: dict[str, str], content: bytes) -> Message:
    record = recorddict_from_proto(RecordDictProto.FromString(content))
    message = Message(record, dst_node_id=1, message_type=header["kind"], group_id=header["group"])
    message.metadata.__dict__["_message_id"] = "worker"  # Flower makes no reply to a message without an id
    return message


def _hash_inputs(site: Site) -> str:
    """Return the SHA-256 (hex) of the worker's inputs: code, settings, policy, and the stat of the records' files."""
    digest = hashlib.sha256(code_sha256.__wrapped__().encode())
    policy = site.custody_folder / POLICY
    for path in (site.folder / SITE_FILE, site.folder / KIT_FILE, policy, policy.with_name(f"{POLICY}.sig")):
        with contextlib.suppress(FileNotFoundError):
            digest.update(path.read_bytes())
    names = (site.settings.data.public_reference, site.settings.model.path)
    for path in [Path(site.source), *(site.resolve(name) for name in names if name is not None)]:
        with contextlib.suppress(OSError):  # built-in data have no file
            stat = os.stat(path)
            digest.update(f"{stat.st_ino} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _listen(state: Path) -> Iterator[socket.socket]:
    path = state / SOCKET
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        previous_umask = os.umask(0o177)
        try:
            with open_short_path(state) as short_path:
                listener.bind(f"{short_path}/{SOCKET}")
        finally:
            os.umask(previous_umask)
        listener.listen(8)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)
