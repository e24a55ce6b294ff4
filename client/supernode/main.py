"""The site's node: Flower's SuperNode, with TLS and the node's own key, and no open port.

Messages are answered in this process (`client/supernode/executor.py`), by the site's worker
(`client/supernode/worker.py`). Flower serves them on a port of this machine, to all of its users; here on a Unix socket
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

from fedglm.client.link.state import LinkRecorder
from fedglm.client.site.folder import Site
from fedglm.client.site.settings import SiteError
from fedglm.client.site.site_keys import read_flower_private_key
from fedglm.client.supernode.replies import WorkTracker, install_reply_sender

_QUERY: Final = "query"  # type of the message that announces the plan of a run
_SOCKET: Final = "runtime.sock"


def make_node_config(site: Site) -> str:
    """Return the SuperNode's node configuration, which passes the path of the site's folder to the ClientApp.

    Raises:
        SiteError: The path cannot be passed to Flower.
    """
    # Flower parses `key="value"`, and has no escape for a quote or a control character.
    folder = str(site.folder)
    if not folder.isprintable() or any(mark in folder for mark in "\"'\\"):
        raise SiteError(f"{folder!r}: the folder's name holds a quote, a backslash or a control character; rename it")
    return f'site="{folder}"'


def make_flower_arguments(site: Site, key_file: str, secret_file: str) -> list[str]:
    """Return the command-line arguments of Flower's SuperNode.

    Args:
        site: The node's site.
        key_file: Path of the key that authenticates the node, unencrypted.
        secret_file: Path of the secret that authenticates this process's own executor, and no other.

    Raises:
        SiteError: The path of the site's folder cannot be passed to Flower.
    """
    return [
        *("--root-certificates", str(site.authority)),
        *("--superlink", site.server),
        *("--auth-supernode-private-key", key_file),
        *("--node-config", make_node_config(site)),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", secret_file),
    ]


def run_node(site: Site, on_announcement: Callable[[], None]) -> None:
    """Run the node until a signal ends it.

    Args:
        site: The site.
        on_announcement: Called when a server announces a run; must not block.

    Raises:
        SiteError: The path of the site's folder cannot be passed to Flower.
        PrivacyError: The node's key cannot be used.
    """
    from flwr.app import Context, Message
    from flwr.supernode.cli import flower_supernode

    from fedglm.client.supernode.client_app import app
    from fedglm.client.supernode.executor import start_executor
    from fedglm.client.supernode.lasting_link import install_lasting_link
    from fedglm.client.supernode.one_answer import make_single_handler_app
    from fedglm.client.supernode.server_bounds import install_bounds

    def handle(message: Message, context: Context) -> Message:
        if message.metadata.message_type == _QUERY:
            on_announcement()
        return app(message, context)

    secret = secrets.token_bytes(32)
    files = _write_memory_file("key", read_flower_private_key(site.flower_key)), _write_memory_file("secret", secret)
    sys.argv = ["flower-supernode", *make_flower_arguments(site, *files)]
    install_bounds()
    install_lasting_link(LinkRecorder(site.state, site.server))
    work = WorkTracker()
    install_reply_sender(work)
    path = _serve_on_socket(site.state)
    start_executor(make_single_handler_app(handle), path, secret, work)
    flower_supernode()


def _serve_on_socket(folder: Path) -> str:
    """Make Flower serve its interface for apps on a Unix socket in the folder, and return a short path of the socket.

    The path of a Unix socket has at most about a hundred characters. This one names the open folder by its descriptor,
    and is valid in this process alone.
    """
    import uvicorn

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = f"/proc/self/fd/{os.open(folder, os.O_RDONLY | os.O_DIRECTORY)}/{_SOCKET}"
    (folder / _SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    previous_umask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(previous_umask)

    class Server(uvicorn.Server):
        def run(self, sockets: list[socket.socket] | None = None) -> None:
            super().run(sockets=[*(sockets or []), listener])

    flower = importlib.import_module("flwr.supernode.cli.flower_supernode")
    replacement: Any = SimpleNamespace(Config=uvicorn.Config, Server=Server)
    vars(flower)["uvicorn"] = replacement
    return path


def _write_memory_file(name: str, content: bytes) -> str:
    """Write a file in memory that exists until this process ends, and return its path."""
    descriptor = os.memfd_create(name)
    os.write(descriptor, content)
    return f"/proc/self/fd/{descriptor}"
