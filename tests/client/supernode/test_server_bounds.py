"""What a node takes from its server: within bounds as ever, and else a fault that it gets over."""

import gzip
import importlib
import ssl
from types import SimpleNamespace

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from hostile_link import HostileServer, announced, compressed, endless, redirect
from projects import make_project

from fedglm.client.supernode import server_bounds as module
from fedglm.client.supernode.server_bounds import (
    MAX_BUNDLE_BYTES,
    BoundedFleetClient,
    ServerBoundsError,
    install_bounds,
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("project") / "fl")


def ask(project, **answers):
    """What a node's client makes of the server's answer."""
    with (
        HostileServer(project, **answers) as server,
        BoundedFleetClient.from_server_address(
            f"127.0.0.1:{server.port}", False, str(project.authority), interceptors=[]
        ) as client,
    ):
        return client.PullMessages(PullMessagesRequest())


def test_an_honest_answer_is_taken(project):
    assert not ask(project).messages_list


@pytest.mark.parametrize(
    "answer",
    [endless, announced(512 * 2**20), compressed(gzip.compress(bytes(2**20)))],
    ids=["without end", "too long", "compressed"],
)
def test_an_answer_out_of_bounds_is_not(project, answer):
    with pytest.raises(ServerBoundsError):
        ask(project, pull_messages=answer)


def test_a_redirection_is_no_answer(project):
    with pytest.raises(httpx.HTTPStatusError):
        ask(project, pull_messages=redirect("https://127.0.0.1:1/"))


def test_only_tls_1_3_is_spoken(project):
    with BoundedFleetClient.from_server_address("127.0.0.1:1", False, str(project.authority), interceptors=[]) as made:
        pool = made._client._transport._pool
        assert pool._ssl_context.minimum_version is ssl.TLSVersion.TLSv1_3


@pytest.fixture
def flower(monkeypatch):
    """Flower's loop, with what it was bound by undone afterwards; its callbacks are the test's."""
    loop = importlib.import_module("flwr.supernode.start_client_internal")
    connection = importlib.import_module("flwr.supernode.fleet_http_connection")
    for name in ("_pull_and_store_message", "get_fused_config_from_fab"):
        monkeypatch.setitem(vars(loop), name, vars(loop)[name])
    monkeypatch.setitem(vars(connection), "FleetHttpClient", vars(connection)["FleetHttpClient"])
    seen = SimpleNamespace()
    monkeypatch.setitem(vars(loop), "_pull_and_store_message", lambda **named: seen.__dict__.update(named))
    install_bounds()

    def bounded(**callbacks):
        nothing = dict.fromkeys(("receive", "pull_object", "get_run", "get_fab"), lambda *_: None)
        vars(loop)["_pull_and_store_message"](**nothing | callbacks)
        return seen

    assert vars(connection)["FleetHttpClient"] is BoundedFleetClient
    assert vars(loop)["get_fused_config_from_fab"](b"PK", None) == {}
    return bounded


def test_a_message_has_so_many_parts(flower):
    few, many = (ObjectTree(object_id="m", children=[ObjectTree(object_id="c")] * count) for count in (3, 5000))
    assert flower(receive=lambda: ("m", few)).receive() == ("m", few)
    assert flower(receive=lambda: None).receive() is None
    with pytest.raises(ServerBoundsError):
        flower(receive=lambda: ("m", many)).receive()


def test_the_parts_of_a_message_have_so_many_bytes(flower, monkeypatch):
    monkeypatch.setattr(module, "MAX_MESSAGE_BYTES", 100)
    made = flower(receive=lambda: None, pull_object=lambda *_: bytes(60))
    made.receive()
    assert made.pull_object(1, "x") == bytes(60)
    with pytest.raises(ServerBoundsError):
        made.pull_object(1, "y")
    made.receive()  # the next message
    assert made.pull_object(1, "x") == bytes(60)


def test_a_bundle_is_small_and_runs_are_counted(flower, monkeypatch):
    monkeypatch.setattr(module, "MAX_RUNS", 3)
    fab = SimpleNamespace(content=bytes(MAX_BUNDLE_BYTES + 1))
    with pytest.raises(ServerBoundsError):
        flower(get_fab=lambda *_: fab).get_fab("hash", 1)
    made = flower()
    for run in (1, 2, 3, 3):
        made.get_run(run)
    with pytest.raises(RuntimeError, match="begins anew"):
        made.get_run(4)
