"""Whether a process is connected to a server, as `fedglm client status` tells."""

import os
import socket

import pytest

from fedglm.cli.process.connections import is_connected


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_standing_connection_is_found_and_a_closed_one_is_not(family: int, host: str) -> None:
    with socket.socket(family) as listening:
        try:
            listening.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        listening.listen()
        port = listening.getsockname()[1]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        assert not is_connected([os.getpid()], address)
        with socket.create_connection((host, port)):
            assert is_connected([os.getpid()], address)
            assert not is_connected([1 << 22], address), "a process that does not live is connected to nothing"
        assert not is_connected([os.getpid()], address)


def test_a_server_whose_name_is_unknown_is_not_connected() -> None:
    assert not is_connected([os.getpid()], "no-such-host.invalid:9092")


def test_ipv4_through_a_socket_of_ipv6_is_the_same_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket(socket.AF_INET6) as through:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        try:
            through.connect(("::ffff:127.0.0.1", listening.getsockname()[1]))
        except OSError:
            pytest.skip("this machine has no IPv6")
        assert is_connected([os.getpid()], address)
