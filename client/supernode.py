"""The command that runs a site's node: Flower's SuperNode, with TLS, the node's own key and nothing else left open."""

import socket
import sys
from pathlib import Path

from fedglm.client.site_folder import Site
from fedglm.client.site_settings import SiteError

LOCAL = "127.0.0.1"


def supernode_command(site: Site) -> list[str]:
    """Program and arguments; the port for Flower's own processes on this machine is a free one.

    Raises:
        SiteError: The folder's name cannot be told to Flower.
    """
    # Flower reads `key="value"`; no escape brings a quote or a control character through.
    folder = str(site.folder)
    if not folder.isprintable() or any(mark in folder for mark in "\"'\\"):
        raise SiteError(f"{folder!r}: the folder's name holds a quote, a backslash or a control character; rename it")
    return [
        str(Path(sys.executable).with_name("flower-supernode")),
        *("--root-certificates", str(site.authority)),
        *("--superlink", site.server),
        *("--auth-supernode-private-key", str(site.flower_key)),
        *("--node-config", f'site="{folder}"'),
        *("--host", LOCAL),
        *("--port", str(_free_port())),
    ]


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind((LOCAL, 0))
        return int(listening.getsockname()[1])
