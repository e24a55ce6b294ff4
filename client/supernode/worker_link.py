"""The way from a message to the site's worker: a Unix socket that only the site's own user can open.

    state/worker.sock    where the worker listens
    state/worker.lock    held by the one worker that there is
    state/worker.log     what it prints: of errors, also texts that stay at the site

One connection carries one question and its answer, each as a line of JSON and the content of the message, framed by
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

from fedglm.client.site.settings import read_site_file
from fedglm.core.errors import FedglmError
from fedglm.privacy.keys.private_files import make_private_folder

SOCKET, LOG = "worker.sock", "worker.log"
AGAIN: Final = b"again"
"""What a worker answers that is no longer of the code or the files on the disk; it ends, and another one is started."""

MAX_BYTES: Final = 2**31 - 1
_START_S = 180.0
_STARTS = 3


class WorkerError(FedglmError, RuntimeError):
    """The worker died, or could not be started; the message names its log."""


@dataclass(frozen=True)
class Question:
    """A message to the node.

    Attributes:
        kind: `query`, `train` or `evaluate`.
        group: Flower's group id, the round.
        content: Its RecordDict, as protobuf.
    """

    kind: str
    group: str
    content: bytes


@dataclass(frozen=True)
class Answer:
    """The node's answer.

    Attributes:
        error: Flower's error code and the reason; None where there is an answer.
        content: Its RecordDict, as protobuf.
    """

    error: tuple[int, str] | None
    content: bytes = b""


def ask(site: Path, question: Question) -> Answer:
    """Put a question to the site's worker, started if need be, and to another one if that dies over it.

    To ask twice is safe: a node answers a round that it has trained for with the same bytes.

    Args:
        site: The site's folder.
        question: The message.

    Raises:
        WorkerError: It died each time before it answered, or does not start.
        SiteError: The site's folder cannot be read.
    """
    state = site / read_site_file(site).site.state
    for _ in range(_STARTS):
        with _connected(site, state) as connection:
            try:
                send(connection, {"kind": question.kind, "group": question.group}, question.content)
                said = connection.recv_bytes(MAX_BYTES)
                if said == AGAIN:
                    continue
                words = json.loads(said)
                content = connection.recv_bytes(MAX_BYTES)
            except (EOFError, OSError):
                continue
            error = words["error"]
            return Answer(None if error is None else (int(error[0]), str(error[1])), content)
    raise WorkerError(f"the site's worker ended {_STARTS} times before it answered: see {LOG} in the state folder")


def send(connection: Connection, words: object, content: bytes) -> None:
    """A line of JSON, then bytes."""
    connection.send_bytes(json.dumps(words).encode())
    connection.send_bytes(content)


@contextmanager
def in_folder(folder: Path) -> Iterator[str]:
    """A short path that means the folder: a socket's path has room for about a hundred characters."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextmanager
def _connected(site: Path, state: Path) -> Iterator[Connection]:
    with socket.socket(socket.AF_UNIX) as link:
        if not _reaches(link, state):
            _start(site, state, link)
        with Connection(link.detach()) as connection:
            yield connection


def _reaches(link: socket.socket, state: Path) -> bool:
    try:
        with in_folder(state) as here:
            link.connect(f"{here}/{SOCKET}")
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    return True


def _start(site: Path, state: Path, link: socket.socket) -> None:
    """Start a worker that outlives this process, and connect to it or to whichever was quicker."""
    make_private_folder(state)
    descriptor = os.open(state / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        command = [sys.executable, "-m", "fedglm.client.supernode.worker_process", str(site)]
        worker = subprocess.Popen(  # noqa: S603 - our own program
            command, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, start_new_session=True
        )
    finally:
        os.close(descriptor)
    deadline = time.monotonic() + _START_S
    while not _reaches(link, state):
        if time.monotonic() > deadline or (worker.poll() not in (None, 0)):
            raise WorkerError(f"the site's worker does not start: see {LOG} in the site's state folder")
        time.sleep(0.05)
