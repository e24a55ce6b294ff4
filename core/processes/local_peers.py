"""The user behind the other end of a TCP connection within this machine; from Linux's /proc.

A port of 127.0.0.1 is open to every user of the machine. TCP does not identify the peer, but the kernel's table of
connections has both ends of one within the machine, each with the user that opened it. psutil shows no such user, and a
process only to those who may inspect it.
"""

import os
import socket
import sys
from pathlib import Path
from typing import Final

_TABLES: Final = {socket.AF_INET: Path("/proc/self/net/tcp"), socket.AF_INET6: Path("/proc/self/net/tcp6")}
_ESTABLISHED: Final = "01"  # see proc_net_tcp in the kernel's documentation
_ROOT: Final = 0


def is_own_process(connection: socket.socket) -> bool:
    """Return whether the other end is a process of this user, or of root, which may do all that this user may.

    Args:
        connection: Connection accepted on a port of 127.0.0.1 or ::1.
    """
    return find_owner(connection) in (os.geteuid(), _ROOT)


def find_owner(connection: socket.socket) -> int | None:
    """Return the user id of the other end; None where no living process of this machine holds it open, both ways.

    The kernel lists an end that its process has closed as root's: here such an end belongs to nobody.
    """
    try:
        here, there = connection.getsockname(), connection.getpeername()
        lines = _TABLES[connection.family].read_text().splitlines()[1:]
    except (OSError, KeyError):
        return None
    ends = _format_end(connection.family, *there[:2]), _format_end(connection.family, *here[:2])
    for line in lines:
        fields = line.split()
        if (fields[1], fields[2], fields[3]) == (*ends, _ESTABLISHED) and fields[9] != "0":
            return int(fields[7])
    return None


def _format_end(family: int, address: str, port: int) -> str:
    """Format an end of a connection as in the kernel's table: 32-bit words in this machine's byte order."""
    raw = socket.inet_pton(family, address.partition("%")[0])
    order = -1 if sys.byteorder == "little" else 1
    words = b"".join(raw[at : at + 4][::order] for at in range(0, len(raw), 4))
    return f"{words.hex().upper()}:{port:04X}"
