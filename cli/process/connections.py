"""Which servers a process is connected to, from Linux's /proc."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from fedglm.client.site.settings import host_and_port

_PROC: Final = Path("/proc")
_ESTABLISHED: Final = "01"  # see proc_net_tcp in the kernel's documentation


def is_connected(pids: Iterable[int], server: str) -> bool:
    """Whether one of the processes has a TCP connection to a server that stands.

    Args:
        pids: Numbers of processes of this user.
        server: HOST:PORT.
    """
    host, port = host_and_port(server)
    try:
        wanted = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return any((address, port) in _peers(pid) for pid in pids for address in wanted)


def _peers(pid: int) -> set[tuple[str, int]]:
    """Addresses and ports that a process's standing connections lead to."""
    own, found = _inodes(pid), set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (_PROC / str(pid) / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _ESTABLISHED and fields[9] in own:
                    address, _, port = fields[2].partition(":")
                    found.add((_address(address), int(port, 16)))
    return found


def _inodes(pid: int) -> set[str]:
    """Numbers of the sockets that a process holds."""
    found = set()
    with contextlib.suppress(OSError):
        for link in (_PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                name = os.readlink(link)
                if name.startswith("socket:["):
                    found.add(name[8:-1])
    return found


def _address(digits: str) -> str:
    """An address of the kernel's table, 32-bit words in this machine's order, as text; IPv4 within IPv6 as IPv4."""
    words = bytes.fromhex(digits)
    order = -1 if sys.byteorder == "little" else 1
    raw = b"".join(words[at : at + 4][::order] for at in range(0, len(words), 4))
    if raw.startswith(bytes(10) + b"\xff\xff"):
        raw = raw[12:]
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)
