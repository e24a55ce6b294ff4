"""TCP connections of processes to a server."""

import socket
from collections.abc import Iterable

import psutil

from fedglm.client.site.settings import split_address

_IPV4_IN_IPV6 = "::ffff:"


def is_connected(pids: Iterable[int], server: str) -> bool:
    """Return whether one of the processes has an established TCP connection to a server.

    Args:
        pids: Ids of processes of this user.
        server: Address of the server, HOST:PORT.
    """
    host, port = split_address(server)
    try:
        addresses = {(str(info[4][0]), port) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return any(not addresses.isdisjoint(_list_peers(pid)) for pid in pids)


def _list_peers(pid: int) -> set[tuple[str, int]]:
    """List the remote addresses and ports of a process's established connections; none if it has ended."""
    try:
        connections = psutil.Process(pid).net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return set()
    return {
        (connection.raddr.ip.removeprefix(_IPV4_IN_IPV6), connection.raddr.port)
        for connection in connections
        if connection.status == psutil.CONN_ESTABLISHED
    }
