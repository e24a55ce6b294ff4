"""The site's node: Flower's SuperNode, with TLS, the node's own key and nothing else left open.

Messages are answered in this process (`client/executor.py`), by the site's worker (`client/worker.py`).
"""

import os
import secrets
import socket
import sys
from collections.abc import Callable

from fedglm.client.replies import Work, send_all
from fedglm.client.site_folder import Site
from fedglm.client.site_keys import flower_private
from fedglm.client.site_settings import SiteError

LOCAL = "127.0.0.1"

_ANNOUNCES = "query"  # type of the message that brings a run's plan


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


def flower_arguments(site: Site, port: int, key_file: str, secret_file: str) -> list[str]:
    """Flower's options.

    Args:
        site: Whose node.
        key_file: The key that the node signs on with, unlocked.
        port: For this process's own thread that answers messages; on this machine alone.
        secret_file: What lets it alone take them.

    Raises:
        SiteError: The folder's name cannot be told to Flower.
    """
    return [
        *("--root-certificates", str(site.authority)),
        *("--superlink", site.server),
        *("--auth-supernode-private-key", key_file),
        *("--node-config", node_config(site)),
        *("--isolation", "process"),
        *("--host", LOCAL),
        *("--port", str(port)),
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

    from fedglm.client.deployed import app
    from fedglm.client.executor import start_executor
    from fedglm.client.one_answer import app_of

    def answer(message: Message, context: Context) -> Message:
        if message.metadata.message_type == _ANNOUNCES:
            announced()
        return app(message, context)

    port, secret = _free_port(), secrets.token_bytes(32)
    files = _in_memory("key", flower_private(site.flower_key)), _in_memory("secret", secret)
    sys.argv = ["flower-supernode", *flower_arguments(site, port, *files)]
    work = Work()
    send_all(work)
    start_executor(app_of(answer), f"{LOCAL}:{port}", secret, work)
    flower_supernode()


def _in_memory(name: str, content: bytes) -> str:
    """Path of a file that is on no disk, for as long as this process lives."""
    descriptor = os.memfd_create(name)
    os.write(descriptor, content)
    return f"/proc/self/fd/{descriptor}"


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind((LOCAL, 0))
        return int(listening.getsockname()[1])
