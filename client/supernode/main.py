"""The site's node: Flower's SuperNode, with TLS, the node's own key and nothing else left open.

Messages are answered in this process (`client/supernode/executor.py`), by the site's worker
(`client/supernode/worker.py`). Flower offers them on a port of this machine, to every user of it. Here that is a socket
in the site's own folder.
"""

import importlib
import os
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from fedglm.client.site.folder import Site
from fedglm.client.site.settings import SiteError
from fedglm.client.site.site_keys import flower_private
from fedglm.client.supernode.replies import Work, send_all

_ANNOUNCES: Final = "query"  # type of the message that brings a run's plan
_SOCKET: Final = "runtime.sock"


def node_config(site: Site) -> str:
    """What Flower hands to the ClientApp: where the site's folder is.

    Raises:
        SiteError: The folder's name cannot be told to Flower.
    """
    # Flower reads `key="value"`; no escape brings a quote or a control character through.
    folder = str(site.folder)
    if not folder.isprintable() or any(mark in folder for mark in "\"'\\"):
        raise SiteError(f"{folder!r}: the folder's name holds a quote, a backslash or a control character; rename it")
    return f'site="{folder}"'


def flower_arguments(site: Site, key_file: str, secret_file: str) -> list[str]:
    """Flower's options.

    Args:
        site: Whose node.
        key_file: The key that the node signs on with, unlocked.
        secret_file: What lets this process's own thread alone take messages.

    Raises:
        SiteError: The folder's name cannot be told to Flower.
    """
    return [
        *("--root-certificates", str(site.authority)),
        *("--superlink", site.server),
        *("--auth-supernode-private-key", key_file),
        *("--node-config", node_config(site)),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", secret_file),
    ]


def run_node(site: Site, announced: Callable[[], None]) -> None:
    """Be the node until a signal ends it.

    Args:
        site: Whose.
        announced: Is told, and must not wait, when a server announces a run.

    Raises:
        SiteError: The folder's name cannot be told to Flower.
    """
    from flwr.app import Context, Message
    from flwr.supernode.cli import flower_supernode

    from fedglm.client.supernode.client_app import app
    from fedglm.client.supernode.executor import start_executor
    from fedglm.client.supernode.one_answer import app_of
    from fedglm.client.supernode.server_bounds import bound_messages

    def answer(message: Message, context: Context) -> Message:
        if message.metadata.message_type == _ANNOUNCES:
            announced()
        return app(message, context)

    secret = secrets.token_bytes(32)
    files = _in_memory("key", flower_private(site.flower_key)), _in_memory("secret", secret)
    sys.argv = ["flower-supernode", *flower_arguments(site, *files)]
    bound_messages()
    work = Work()
    send_all(work)
    path = _serve_in(site.state)
    start_executor(app_of(answer), path, secret, work)
    flower_supernode()


def _serve_in(folder: Path) -> str:
    """Have Flower serve its interface for apps on a socket in the folder; returns a short path that means it here.

    A socket's path has room for about a hundred characters, so it is named by the open folder.
    """
    import uvicorn

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    here = f"/proc/self/fd/{os.open(folder, os.O_RDONLY | os.O_DIRECTORY)}/{_SOCKET}"
    (folder / _SOCKET).unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listening.bind(here)
    finally:
        os.umask(before)

    class Server(uvicorn.Server):
        def run(self, sockets: list[socket.socket] | None = None) -> None:
            super().run(sockets=[*(sockets or []), listening])

    flower = importlib.import_module("flwr.supernode.cli.flower_supernode")
    replaced: Any = SimpleNamespace(Config=uvicorn.Config, Server=Server)
    vars(flower)["uvicorn"] = replaced
    return here


def _in_memory(name: str, content: bytes) -> str:
    """Path of a file that is on no disk, for as long as this process lives."""
    descriptor = os.memfd_create(name)
    os.write(descriptor, content)
    return f"/proc/self/fd/{descriptor}"
