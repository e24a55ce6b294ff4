"""Whatever a link fails by, Flower's own client tries again, and goes on once it is healed."""

import json

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.supercore.retry import make_simple_http_retry_invoker
from hostile_link import HostileServer, reply
from misbehaving_link import WAYS, MisbehavingLink
from projects import make_project

from fedglm.client.link.faults import LinkFault
from fedglm.client.link.state import LinkRecorder, LinkState
from fedglm.client.supernode.lasting_link import LastingFleetClient, NoLinkError

FAULTS = {
    "refused": LinkFault.REFUSED,
    "closed": LinkFault.BROKEN,
    "reset": LinkFault.BROKEN,
    "silent": LinkFault.NO_ANSWER,
    "plain HTTP": LinkFault.NO_TLS,
    "noise": LinkFault.NO_TLS,
    "an expired certificate": LinkFault.EXPIRED,
    "a foreign certificate": LinkFault.OTHER_AUTHORITY,
    "another service": LinkFault.OTHER_SERVICE,
    "a page": LinkFault.OTHER_SERVICE,
    "a page that claims to be protobuf": LinkFault.OTHER_SERVICE,
    "nothing": LinkFault.OTHER_SERVICE,
    "not available": LinkFault.UNAVAILABLE,
    "forbidden by a proxy": LinkFault.OTHER_SERVICE,
    "a login": LinkFault.OTHER_SERVICE,
    "unauthorized": LinkFault.NOT_ADMITTED,
    "a fault": LinkFault.OTHER_SERVICE,
    "cut short": LinkFault.BROKEN,
    "no HTTP": LinkFault.BROKEN,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("links") / "fed")


@pytest.fixture(scope="module")
def server(project):
    with HostileServer(project) as server:
        yield server


@pytest.fixture(scope="module")
def link(project, server, tmp_path_factory):
    with MisbehavingLink(project, tmp_path_factory.mktemp("certificates"), server.port) as link:
        yield link


def connect(project, port, recorder):
    """Flower's client of the node, as `run_node` has it made."""

    class Client(LastingFleetClient):
        pass

    Client.recorder = recorder
    client = Client.from_server_address(f"127.0.0.1:{port}", False, str(project.authority), [])
    client._client.timeout = httpx.Timeout(1.0)  # Flower's are 30 s
    return client


def test_every_way_is_known_here():
    assert set(FAULTS) == set(WAYS)


@pytest.mark.parametrize("way", WAYS)
def test_it_is_tried_again_until_it_is_healed(project, link, tmp_path, way):
    recorder = LinkRecorder(tmp_path, f"127.0.0.1:{link.port}")
    invoker = make_simple_http_retry_invoker()
    tries = []

    def wait(seconds):
        tries.append(LinkState.read(tmp_path))
        assert 0 <= seconds <= 20
        if len(tries) == 3:
            link.heal()

    invoker.wait_function = wait
    with connect(project, link.port, recorder) as client:
        assert client.PullMessages(PullMessagesRequest()) is not None
        assert LinkState.read(tmp_path).connected
        link.misbehave(way)
        answer = invoker.invoke(client.ActivateNode, ActivateNodeRequest())
    assert answer.node_id == 7
    assert [(one.connected, one.fault) for one in tries] == [(False, FAULTS[way])] * 3
    assert len({one.since for one in tries}) == 1, "a fault that lasts has begun once"
    healed = LinkState.read(tmp_path)
    assert (healed.connected, healed.fault) == (True, None)
    assert healed.since > tries[0].since


@pytest.mark.parametrize("path", ["activate_node", "pull_messages"])
def test_what_the_server_says_of_a_run_passes_but_not_of_the_nodes_admission(project, tmp_path, path):
    def refuse(handler):
        body = json.dumps({"code": 403, "detail": "the run is not running"}).encode()
        handler.send_response(403)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    with HostileServer(project, **{path: refuse}) as server:
        recorder = LinkRecorder(tmp_path, f"127.0.0.1:{server.port}")
        with connect(project, server.port, recorder) as client:
            if path == "activate_node":
                with pytest.raises(NoLinkError):
                    client.ActivateNode(ActivateNodeRequest())
                assert LinkState.read(tmp_path).fault is LinkFault.NOT_ADMITTED
            else:
                with pytest.raises(httpx.HTTPStatusError):
                    client.PullMessages(PullMessagesRequest())
                assert LinkState.read(tmp_path).connected


def test_a_state_that_cannot_be_written_or_read_stops_nothing(project, tmp_path):
    (tmp_path / "state").write_text("a file in the folder's place")
    with HostileServer(project, pull_messages=lambda handler: reply(handler, b"")) as server:
        recorder = LinkRecorder(tmp_path / "state", f"127.0.0.1:{server.port}")
        with connect(project, server.port, recorder) as client:
            client.PullMessages(PullMessagesRequest())
    assert LinkState.read(tmp_path / "state") is None
    (tmp_path / "link.json").write_text('{"connected": "perhaps"}')
    assert LinkState.read(tmp_path) is None
