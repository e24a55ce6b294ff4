"""Strangers who reach the sites' port: whatever they open, send or withhold, the sites are served."""

import collections
import contextlib
import os
import random
import resource
import socket
import ssl
import threading
import time

import pytest
from command_line import soon
from live_server import LiveServer, silent
from super_node import SuperNode

from fedglm.server.superlink.control import Control

PATIENCE_S = 5.0
"""An honest refusal comes at once; what waits for a body waits for ever."""


def test_silent_connections_leave_descriptors_for_the_sites(live):
    assert live.serves()
    held = silent(live.port, 600)  # where a process may have 400 open files
    try:
        assert live.serves(within=10), "no site gets in any more"
        assert live.descriptors() < 300
    finally:
        for connection in held:
            connection.close()


@pytest.mark.slow
def test_a_silent_connection_does_not_stay(live):
    with socket.create_connection(("127.0.0.1", live.port)) as plain, live.connect() as spoken:
        for connection in (plain, spoken):  # before TLS, and after its handshake
            connection.settimeout(25)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""


@pytest.mark.parametrize("signed_by", [None, "a"], ids=["a stranger", "one who knows a site's public key"])
def test_an_unsigned_body_is_not_read(live, signed_by):
    with live.connect() as connection:
        connection.settimeout(PATIENCE_S)
        if signed_by is None:
            head = b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\ncontent-length: 60000000\r\n\r\n"
        else:
            head = live.head("push-object", signed_by, 60_000_000, signed=False)
        connection.sendall(head + bytes(1000))  # the rest never comes
        assert connection.recv(1000).startswith(b"HTTP/1.1 401 "), "it waits for the body of somebody unknown"


def test_unsigned_bodies_take_no_memory(live):
    before = live.memory()
    connections = [live.connect() for _ in range(8)]
    try:
        for connection in connections:
            connection.settimeout(1)
            with contextlib.suppress(OSError):  # cut off
                connection.sendall(live.head("push-object", "a", 32 * 2**20, signed=False))
                for _ in range(31):
                    connection.sendall(bytes(2**20))
        assert live.memory() - before < 64
    finally:
        for connection in connections:
            connection.close()
    assert live.serves()


def test_a_head_has_an_end(live):
    with live.connect() as connection:
        connection.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\n")
        sent, answer = 0, b""
        while not answer and sent < 2**20:
            connection.settimeout(PATIENCE_S)
            connection.sendall(b"x-filler: " + b"x" * 16_000 + b"\r\n")
            sent += 16_012
            connection.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(1000)
        assert answer.startswith(b"HTTP/1.1 4"), f"{sent} bytes of a head were read"


def test_requests_sent_ahead_take_no_memory(live):
    before = live.memory()
    many = b"GET /v1/fleet/ HTTP/1.1\r\nhost: x\r\n\r\n" * 20_000
    for _ in range(10):
        with live.connect() as connection, contextlib.suppress(OSError):
            connection.settimeout(1)
            connection.sendall(many)
    assert live.memory() - before < 64
    assert live.serves()


def test_only_tls_1_3_is_spoken(live):
    with pytest.raises(ssl.SSLError):
        live.connect(maximum_version=ssl.TLSVersion.TLSv1_2)
    with live.connect() as connection:
        assert connection.version() == "TLSv1.3"


class Stranger(threading.Thread):
    """Does one of the things that strangers do, again and again, and lets go of no connection while it can hold it."""

    def __init__(self, live, seed):
        super().__init__(daemon=True)
        self._live, self._dice = live, random.Random(seed)  # noqa: S311 - an attack's order
        self._held = collections.deque()
        self.stop, self.done = threading.Event(), 0

    def run(self):
        attacks = (self.say_nothing, self.half_a_handshake, self.garbage, self.slow_body, self.slow_head, self.ahead)
        while not self.stop.is_set():
            with contextlib.suppress(OSError):
                self._dice.choice(attacks)()
            self.done += 1
            self.stop.wait(0.05)
        for connection in self._held:
            connection.close()

    def hold(self, *connections):
        self._held.extend(connections)
        while len(self._held) > 500:
            self._held.popleft().close()

    def say_nothing(self):
        self.hold(*silent(self._live.port, self._dice.randint(1, 100)))

    def half_a_handshake(self):
        hello = ssl.MemoryBIO()
        made = self._live.context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="127.0.0.1")
        with contextlib.suppress(ssl.SSLWantReadError):
            made.do_handshake()
        sent = hello.read()
        for connection in silent(self._live.port, 20):
            with contextlib.suppress(OSError):
                connection.sendall(sent[: self._dice.randint(1, len(sent))])
            self.hold(connection)

    def garbage(self):
        plain = socket.create_connection(("127.0.0.1", self._live.port), timeout=2)
        self.hold(plain)
        plain.sendall(self._dice.randbytes(self._dice.randint(1, 5000)))
        spoken = self._live.connect()
        self.hold(spoken)
        spoken.sendall(self._dice.randbytes(self._dice.randint(1, 5000)))

    def slow_body(self):
        connection = self._live.connect()
        self.hold(connection)
        connection.sendall(self._live.head("push-object", "a", 10**7, signed=False))
        for _ in range(40):
            connection.sendall(bytes(100_000))
            self.stop.wait(0.02)

    def slow_head(self):
        connection = self._live.connect()
        self.hold(connection)
        for byte in b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x":
            connection.sendall(bytes([byte]))
            self.stop.wait(0.02)

    def ahead(self):
        connection = self._live.connect()
        self.hold(connection)
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 5000)


def besiege(live, seconds, strangers):
    """Attack the port for a while, as a site goes on asking; how long its longest wait for an answer was."""
    before, longest = live.memory(), 0.0
    crowd = [Stranger(live, seed) for seed in range(strangers)]
    for one in crowd:
        one.start()
    end, answers = time.monotonic() + seconds, 0
    try:
        while time.monotonic() < end:
            began = time.monotonic()
            assert live.serves(within=30), "a site is shut out"
            longest, answers = max(longest, time.monotonic() - began), answers + 1
            assert live.memory() - before < 64
            assert live.descriptors() < 300
            time.sleep(0.2)
    finally:
        for one in crowd:
            one.stop.set()
        for one in crowd:
            one.join(20)
    assert soon(lambda: live.descriptors() < 100, 60), "connections of strangers stay"
    print(f"{sum(one.done for one in crowd)} attacks; {answers} answers to a site, the slowest after {longest:.1f} s")
    print(f"memory: {live.memory() - before:+.1f} MiB")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_siege_of_strangers(live, tmp_path):
    """Ten minutes of all that they can do; a node of Flower's own is connected all the while."""
    with SuperNode(live.project, live.sites["b"], tmp_path) as node:
        assert soon(lambda: "SuperNode ID" in node.said, 60), node.said
        besiege(live, float(os.environ.get("FEDGLM_SIEGE_S", "600")), strangers=4)
        assert node.process.poll() is None, node.said
        with Control(live.project) as control:
            key = live.sites["b"].identity.flower
            assert soon(lambda: [n.status for n in control.list_nodes() if n.key == key] == ["online"], 90)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_as_many_silent_connections_as_this_machine_makes(tmp_path):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with LiveServer(tmp_path) as server:
        before = server.memory()
        held = silent(server.port, min(20_000, most - 500))  # this process needs some for itself
        try:
            assert len(held) > 1_000
            assert server.serves(within=20)
            assert server.memory() - before < 64
            print(f"{len(held)} connections: {server.memory() - before:+.1f} MiB, {server.descriptors()} descriptors")
        finally:
            for connection in held:
                connection.close()
