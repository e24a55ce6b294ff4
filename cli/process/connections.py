"""Which servers a process is connected to."""

import socket
from collections.abc import Iterable

import psutil

from fedglm.client.site.settings import split_address

_IPV4_IN_IPV6 = "::ffff:"


def is_connected(pids: Iterable[int], server: str) -> bool:
    """Whether one of the processes has a TCP connection to a server that stands.

    Args:
        pids: Numbers of processes of this user.
        server: HOST:PORT.
    """
    host, port = split_address(server)
    try:
        wanted = {(str(info[4][0]), port) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return any(not wanted.isdisjoint(_peers(pid)) for pid in pids)


def _peers(pid: int) -> set[tuple[str, int]]:
    """Addresses and ports that a process's standing connections lead to; none of one that has ended."""
    try:
        connections = psutil.Process(pid).net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return set()
    return {
        (connection.raddr.ip.removeprefix(_IPV4_IN_IPV6), connection.raddr.port)
        for connection in connections
        if connection.status == psutil.CONN_ESTABLISHED
    }
