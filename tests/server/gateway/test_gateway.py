"""The port that the sites reach: who passes, who does not, and what those are told."""

import asyncio
import base64
import datetime
import json
import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.control_pb2 import ListNodesResponse
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.proto.node_pb2 import NodeInfo
from projects import Site, make_project

from fedglm.server.gateway import gateway as module
from fedglm.server.gateway.connections import CONNECTION, ConnectionTable
from fedglm.server.gateway.gateway import MAX_BODY_BYTES, SitesGateway
from fedglm.server.gateway.node_keys import EnrolledKeys
from fedglm.server.gateway.rate_limits import MAX_CONCURRENT, MAX_WAITING

A, B, C = Site.make("a"), Site.make("b"), Site.make("c")
LIMIT = MAX_BODY_BYTES["/v1/fleet/pull-messages"]


@pytest.fixture
def project(tmp_path):
    """A project with kits for a and b."""
    return make_project(tmp_path / "fl")


@pytest.fixture
def server(project, fedglm):
    """`fedglm server COMMAND ... -C PROJECT`."""
    return lambda *arguments: fedglm("server", *arguments, "-C", project.folder)


def request(path="/v1/fleet/pull-messages", *, site=A, late=0.0, signer=None, body=b"", state=None, **fields):
    """An ASGI scope as a node's request makes it."""
    sent = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=late)).isoformat().encode()
    pem = site.flower.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = (signer or site).flower.sign(sent, ECDSA(SHA256()))
    told = {
        "flwr_public_key": base64.b64encode(pem),
        "flwr_timestamp": sent,
        "flwr_signature": base64.b64encode(signature),
        "content_length": str(len(body)).encode(),
    } | fields
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "server": ("127.0.0.1", 1),
        "client": ("192.0.2.9", 5),
        "headers": [(name.replace("_", "-").encode(), value) for name, value in told.items() if value is not None],
        "state": state or {},
    }


def answer(door, scope, body=b"", *, reads=None):
    """Status and reason of the door's answer; `reads` counts how often the body was asked for."""
    answers = []

    async def send(message):
        answers.append(message)

    async def receive():
        if reads is not None:
            reads.append(1)
        return {"type": "http.request", "body": body}

    asyncio.run(door(scope, receive, send))
    if not answers:
        return None, ""
    text = b"".join(message.get("body", b"") for message in answers[1:])
    return answers[0]["status"], json.loads(text)["detail"] if text else ""


def ask(door, path="/v1/fleet/pull-messages", *, body=b"", **fields):
    return answer(door, request(path, body=body, **fields), body)


async def flower(_scope, receive, send):
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def keys(project, server, tmp_path):
    """Of a project where a and b are enrolled."""
    server("enrol", A.hand_over(tmp_path))
    server("enrol", B.hand_over(tmp_path))
    return EnrolledKeys(project)


@pytest.fixture
def door(keys, project):
    return SitesGateway(flower, keys, project.state)


CLOSED = [
    "/",
    "/health",
    "/docs",
    "/openapi.json",
    "/v1/control/start-run",
    "/v1/control/register-node",
    "/v1/control/list-nodes",
    "/v1/runtime/acquire-task",
    "/v1/runtime/push-messages",
    "/v1/fleet",
    "/v1/fleet/register-node",
    "/v1/fleet/unregister-node",
    "//v1/fleet/pull-messages",
    "/V1/fleet/pull-messages",
]


@pytest.mark.parametrize("path", CLOSED)
def test_only_what_nodes_ask_passes_and_the_rest_is_for_this_machine(door, path):
    status, reason = ask(door, path)
    assert status == 403
    assert "server's own machine" in reason


def test_an_enrolled_node_passes(door):
    for site in (A, B):
        for path in ("activate-node", "pull-messages", "get-run"):
            assert ask(door, f"/v1/fleet/{path}", site=site) == (200, "")
            assert ask(door, f"/v1/fleet/{path}", site=site, late=200) == (200, "")


def test_a_stranger_does_not_pass(door, caplog):
    for strange in ({"site": C}, {"flwr_public_key": None}, {"flwr_public_key": b"\xff"}):
        assert ask(door, "/v1/fleet/activate-node", **strange)[0] == 412
        status, reason = ask(door, **strange)
        assert status == 401
        assert "not enrolled" in reason
    assert "turned away 192.0.2.9" in caplog.text


WRONG = {"of another key": {"signer": C}, "none": {"flwr_signature": None}, "no base64": {"flwr_signature": b"\xff"}}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_who_has_not_signed_does_not_pass_and_is_not_read(door, wrong):
    reads = []
    for path in MAX_BODY_BYTES:
        status, reason = answer(door, request(path, body=b"12345", **wrong), reads=reads)
        assert status == 401
        assert "has not signed" in reason
    assert reads == []


def test_a_signature_authenticates_a_connection(door):
    table = ConnectionTable()
    connection = table.add("192.0.2.9", lambda: None)
    table.mark_unauthenticated(connection)
    ask(door, signer=C, state={CONNECTION: connection})
    assert (connection.site, table.counts) == (None, (0, 1, 0))
    ask(door, state={CONNECTION: connection})
    assert (connection.site, table.counts) == ("a", (0, 0, 1))


def test_who_is_revoked_is_out_at_once(door, server, tmp_path):
    assert ask(door)[0] == 200
    server("revoke", "a")
    assert ask(door)[0] == 401
    assert ask(door, site=B)[0] == 200
    renewed = Site.make("a")
    server("enrol", renewed.hand_over(tmp_path))
    assert ask(door, site=renewed)[0] == 200


def test_nobody_passes_while_the_list_is_damaged(door, project):
    good = (project.enrolled_folder / "a.pub").read_text()
    os.replace(project.enrolled_folder / "a.pub", project.folder / "kept")
    (project.enrolled_folder / "a.pub").write_text("x")
    for _ in range(2):
        assert ask(door, site=B)[0] == 503  # tries again
    (project.enrolled_folder / "a.pub").write_text(good)
    assert ask(door, site=B)[0] == 200


@pytest.mark.parametrize(("late", "said"), [(-60, "60 s ahead of"), (3600, "3600 s behind")])
def test_a_node_with_a_wrong_clock_is_told(door, late, said):
    status, reason = ask(door, "/v1/fleet/activate-node", late=late)
    assert status == 412
    assert said in reason
    assert ask(door, late=late)[0] == 503  # a clock may be set while the node runs


def test_a_request_without_time_or_length_does_not_pass(door):
    for stamp in (None, b"", b"today", b"2027-01-01T00:00:00", b"\xff", b"9999-99-99"):
        assert ask(door, flwr_timestamp=stamp)[0] == 401
    for length in (None, b"", b"-1", b"1e3", b"99999999999999999999", b"\xb2"):
        assert ask(door, content_length=length)[0] == 411
    assert ask(door, transfer_encoding=b"chunked")[0] == 411
    assert ask(door, content_length=str(LIMIT + 1).encode())[0] == 413
    assert ask(door, content_length=str(LIMIT).encode())[0] == 200


def test_of_two_headers_the_first_counts(door):
    scope = request(site=A)
    strange = [pair for pair in request(site=C)["headers"] if pair[0] == b"flwr-public-key"]
    assert answer(door, scope)[0] == 200
    assert answer(door, {**scope, "headers": strange + scope["headers"]})[0] == 401


def test_a_body_that_does_not_come_is_not_waited_for(door, monkeypatch):
    monkeypatch.setattr(module, "_IDLE_TIMEOUT_S", 0.05)
    answers = []

    async def send(message):
        answers.append(message)

    async def receive():
        if answers or receive.__dict__.setdefault("given", False):
            await asyncio.Event().wait()
        receive.given = True
        return {"type": "http.request", "body": b"x", "more_body": True}

    asyncio.run(door(request(body=b"12345"), receive, send))
    assert answers[0]["status"] == 408
    assert "only 1 of 5 bytes" in answers[1]["body"].decode()


def test_a_body_is_no_longer_than_it_says(door):
    assert answer(door, request(body=b"12"), b"123") == (
        408,
        "The federation's server: a: more than the 2 bytes came that were announced",
    )


def test_what_flower_fails_at_a_node_tries_again(keys, project):
    async def broken(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"database is locked"})

    assert ask(SitesGateway(broken, keys, project.state))[0] == 503


def test_a_site_that_asks_too_much_at_a_time_waits_and_is_turned_away_then(keys, project):
    most, under_way, statuses = [], [], {"a": [], "b": []}
    free = asyncio.Event()

    async def slow(_scope, _receive, send):
        under_way.append(1)
        most.append(len(under_way))
        await free.wait()
        under_way.pop()
        await flower(_scope, _receive, send)

    made = SitesGateway(slow, keys, project.state)

    async def one(site):
        async def send(message):
            if "status" in message:
                statuses[site.name].append(message["status"])

        async def receive():
            return {"type": "http.request", "body": b""}

        await made(request(site=site), receive, send)

    async def all_of_them():
        crowd = [asyncio.create_task(one(A)) for _ in range(MAX_CONCURRENT + MAX_WAITING + 5)]
        await asyncio.sleep(0.1)
        other = asyncio.create_task(one(B))
        await asyncio.sleep(0.1)
        assert len(under_way) == MAX_CONCURRENT + 1, "the other site is served"
        free.set()
        await asyncio.gather(*crowd, other)

    asyncio.run(all_of_them())
    assert sorted(statuses["a"]) == [200] * (MAX_CONCURRENT + MAX_WAITING) + [503] * 5
    assert statuses["b"] == [200]


class Flower:
    """What Flower does with nodes that sign on and off, seen from outside."""

    def __init__(self, *, online, knows=True, leaves=True):
        self.online, self.knows, self.leaves, self.asked = online, knows, leaves, []

    async def __call__(self, scope, receive, send):
        request = await receive()
        self.asked.append(scope["path"].rpartition("/")[2])
        assert dict(scope["headers"])[b"content-length"] == str(len(request["body"])).encode()
        assert scope["state"] == {}
        scope["state"]["of"] = "this request"
        status, body = getattr(self, self.asked[-1].replace("-", "_"))(request["body"])
        await send({"type": "http.response.start", "status": status})
        await send({"type": "http.response.body", "body": body})

    def activate_node(self, body):
        assert ActivateNodeRequest.FromString(body).public_key == b"key"
        return (412, b'{"detail": "online"}') if self.online or not self.knows else (200, b'{"detail": "in"}')

    def deactivate_node(self, body):
        assert DeactivateNodeRequest.FromString(body).node_id == 7
        self.online = self.online and not self.leaves
        return (200, b"") if self.leaves else (401, b"")

    def list_nodes(self, _):
        known = [NodeInfo(node_id=7, public_key=b"key", status="online" if self.online else "offline")] * self.knows
        others = [NodeInfo(node_id=8, public_key=b"other", status="online")]
        return 200, ListNodesResponse(nodes_info=[*others, *known]).SerializeToString()


SIGN_ON = ActivateNodeRequest(public_key=b"key", heartbeat_interval=30).SerializeToString()


@pytest.mark.parametrize(
    ("flower", "status", "asked"),
    [
        (Flower(online=False), 200, ["activate-node"]),
        (Flower(online=True), 200, ["activate-node", "list-nodes", "deactivate-node", "activate-node"]),
        (Flower(online=False, knows=False), 503, ["activate-node", "list-nodes"]),
        (Flower(online=True, leaves=False), 503, ["activate-node", "list-nodes", "deactivate-node"]),
    ],
    ids=["new", "killed before", "not registered yet", "with another's key"],
)
def test_who_signs_on_takes_the_place_of_who_was_killed(keys, project, flower, status, asked):
    inner = SitesGateway(flower, keys, project.state)
    assert ask(inner, "/v1/fleet/activate-node", body=SIGN_ON)[0] == status
    assert flower.asked == asked


def test_web_sockets_get_no_answer(door):
    assert answer(door, request() | {"type": "websocket"}) == (None, "")
