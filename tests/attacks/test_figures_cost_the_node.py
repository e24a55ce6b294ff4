"""Any user of a site's machine reaches the port of the node's figures: it costs the node next to nothing."""

import contextlib
import threading
import urllib.request

import pytest
from live_server import silent

from fedglm.cli.process.exporter import start


@pytest.fixture
def port():
    server, thread = start([], host="127.0.0.1", port=0)
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_silent_connections_take_no_threads(port):
    before = threading.active_count()
    held = silent(port, 200)
    try:
        with contextlib.suppress(OSError):  # served or hung up on, and nothing else
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read()
        assert threading.active_count() - before < 20
    finally:
        for connection in held:
            connection.close()


def test_prometheus_is_answered(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.status == 200
