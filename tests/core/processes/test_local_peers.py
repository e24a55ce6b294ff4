"""Whose process is at the other end of a connection within this machine."""

import os
import socket
import threading

import pytest
from live_server import as_nobody

from fedglm.core.processes.local_peers import find_owner, is_own_process


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def listening(request):
    host = "127.0.0.1" if request.param == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=request.param) as made:
        yield made


def test_it_is_this_user_s(listening):
    with socket.create_connection(listening.getsockname()[:2]), listening.accept()[0] as accepted:
        assert find_owner(accepted) == os.geteuid()
        assert is_own_process(accepted)


@pytest.mark.parametrize("leave", [socket.socket.close, lambda end: end.shutdown(socket.SHUT_WR)], ids=["gone", "half"])
def test_an_end_that_was_closed_is_nobody_s(listening, leave):
    """The kernel lists it as root's."""
    with socket.create_connection(listening.getsockname()[:2]) as end, listening.accept()[0] as accepted:
        leave(end)
        assert find_owner(accepted) is None
        assert not is_own_process(accepted)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to be another user")
def test_it_is_another_user_s(listening):
    address = listening.getsockname()[:2]
    seen = []

    def connect():
        with socket.create_connection(address) as end:
            end.settimeout(10)
            return end.recv(1) == b"x"

    def accept():
        with listening.accept()[0] as accepted:
            seen.append((find_owner(accepted), is_own_process(accepted)))
            accepted.sendall(b"x")

    thread = threading.Thread(target=accept)
    thread.start()
    assert as_nobody(connect)
    thread.join(10)
    assert seen == [(65534, False)]
