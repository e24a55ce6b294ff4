"""Connection from the SuperNode to the site's worker: a Unix socket that only the site's own user can open.

    state/worker.sock    socket on which the worker listens
    state/worker.lock    lock that the only worker holds
    state/worker.log     output of the worker, with error texts that must stay at the site

One connection carries one request and its reply, each as a line of JSON and the content of the message, framed by
`multiprocessing`'s connection; nothing is pickled.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from fedglm.client.site.settings import read_site_file, resolve_path
from fedglm.core.errors import FedglmError
from fedglm.privacy.keys.private_files import private_folder

SOCKET, LOG = "worker.sock", "worker.log"
STALE: Final = b"again"
"""Reply of a worker whose code or files have changed on the disk; it ends, and another one must be started."""

MAX_BYTES: Final = 2**31 - 1
_START_TIMEOUT_S = 180.0
_MAX_ATTEMPTS = 3


class WorkerError(FedglmError, RuntimeError):
    """The worker died, or could not be started; the text names its log."""


@dataclass(frozen=True)
class WorkerRequest:
    """A message to the node.

    Attributes:
        kind: Type of the Flower message: `query`, `query.seal`, `train` or `evaluate`.
        group: Flower's group id, the number of the round.
        content: RecordDict of the message, as protobuf.
    """

    kind: str
    group: str
    content: bytes


@dataclass(frozen=True)
class WorkerReply:
    """The node's reply.

    Attributes:
        error: Flower's error code and the reason; None for a reply with content.
        content: RecordDict of the reply, as protobuf.
    """

    error: tuple[int, str] | None
    content: bytes = b""


def ask(site: Path, request: WorkerRequest) -> WorkerReply:
    """Send a message to the site's worker and return its reply; start a worker where none runs, or where one died.

    Sending a message again is safe: a node answers a round that it has trained for with the same bytes.

    Args:
        site: Folder of the site.
        request: The message.

    Raises:
        WorkerError: The worker died each time before it replied, or does not start.
        SiteError: The site's folder cannot be read.
    """
    state = resolve_path(site, read_site_file(site).site.state)
    for _ in range(_MAX_ATTEMPTS):
        with _connect(site, state) as connection:
            try:
                send(connection, {"kind": request.kind, "group": request.group}, request.content)
                header = connection.recv_bytes(MAX_BYTES)
                if header == STALE:
                    continue
                error = json.loads(header)["error"]
                content = connection.recv_bytes(MAX_BYTES)
            except (EOFError, OSError):
                continue
            return WorkerReply(None if error is None else (int(error[0]), str(error[1])), content)
    raise WorkerError(
        f"the site's worker ended {_MAX_ATTEMPTS} times before it answered: see {LOG} in the state folder"
    )


def send(connection: Connection, header: object, content: bytes) -> None:
    """Send a header as a line of JSON, then the content."""
    connection.send_bytes(json.dumps(header).encode())
    connection.send_bytes(content)


@contextmanager
def open_short_path(folder: Path) -> Iterator[str]:
    """Open the folder, and yield a short path of it: the path of a Unix socket has at most about a hundred characters.

    The path is valid in this process, while the block runs.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextmanager
def _connect(site: Path, state: Path) -> Iterator[Connection]:
    with socket.socket(socket.AF_UNIX) as link:
        if not _try_connect(link, state):
            _start_worker(site, state, link)
        with Connection(link.detach()) as connection:
            yield connection


def _try_connect(link: socket.socket, state: Path) -> bool:
    try:
        with open_short_path(state) as short_path:
            link.connect(f"{short_path}/{SOCKET}")
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    return True


def _start_worker(site: Path, state: Path, link: socket.socket) -> None:
    """Start a worker that outlives this process, and connect to it, or to one that was started at the same time."""
    private_folder(state)
    descriptor = os.open(state / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        command = [sys.executable, "-m", "fedglm.client.supernode.worker_process", str(site)]
        worker = subprocess.Popen(  # noqa: S603 - our own program
            command, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, start_new_session=True
        )
    finally:
        os.close(descriptor)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not _try_connect(link, state):
        if time.monotonic() > deadline or (worker.poll() not in (None, 0)):
            raise WorkerError(f"the site's worker does not start: see {LOG} in the site's state folder")
        time.sleep(0.05)
