"""The port that the sites reach: who passes, who does not, and what those are told."""

import asyncio
import base64
import datetime
import json
import os

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.control_pb2 import ListNodesResponse
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.proto.node_pb2 import NodeInfo
from google.protobuf.message import DecodeError
from projects import Site, make_project

from fedglm.server.sites_door import EnrolledKeys, SitesDoor

A, B, C = Site.make("a"), Site.make("b"), Site.make("c")


@pytest.fixture
def project(tmp_path):
    """A project with kits for a and b."""
    return make_project(tmp_path / "fl")


@pytest.fixture
def server(project, fedglm):
    """`fedglm server COMMAND ... -C PROJECT`."""
    return lambda *arguments: fedglm("server", *arguments, "-C", project.folder)


def ask(door, path="/v1/fleet/pull-messages", *, site=A, port=1, late=0.0, scope_type="http", body=b"", **headers):
    """Status and reason of the door's answer; (200, "") where the request reached Flower."""
    sent = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=late)
    pem = site.flower.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    told = {"flwr_public_key": base64.b64encode(pem), "flwr_timestamp": sent.isoformat().encode()}
    told = told | {"content_length": b"10"} | headers
    scope = {
        "type": scope_type,
        "method": "POST",
        "path": path,
        "server": ("127.0.0.1", port),
        "client": ("192.0.2.9", 5),
        "headers": [(name.replace("_", "-").encode(), value) for name, value in told.items() if value is not None],
    }
    answers = []

    async def send(message):
        answers.append(message)

    async def receive():
        return {"type": "http.request", "body": body}

    asyncio.run(door(scope, receive, send))
    if not answers:
        return None, ""
    return answers[0]["status"], json.loads(answers[1]["body"])["detail"] if len(answers) > 1 else ""


async def flower(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 200})


@pytest.fixture
def door(project, server, tmp_path):
    """The door of a project where a and b are enrolled; the control port is 2."""
    server("enrol", A.hand_over(tmp_path))
    server("enrol", B.hand_over(tmp_path))
    return SitesDoor(flower, 2, EnrolledKeys(project))


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
    "//v1/fleet/pull-messages",
    "/V1/fleet/pull-messages",
]


@pytest.mark.parametrize("path", CLOSED)
def test_only_what_nodes_ask_passes_and_the_rest_is_for_this_machine(door, path):
    status, reason = ask(door, path)
    assert status == 403
    assert "server's own machine" in reason
    assert ask(door, path, port=2) == (200, "")


def test_an_enrolled_node_passes(door):
    for site in (A, B):
        for path in ("activate-node", "pull-messages", "push-object"):
            assert ask(door, f"/v1/fleet/{path}", site=site) == (200, "")
            assert ask(door, f"/v1/fleet/{path}", site=site, late=200) == (200, "")


def test_a_stranger_does_not_pass(door, caplog):
    for strange in ({"site": C}, {"flwr_public_key": None}, {"flwr_public_key": b"\xff"}):
        assert ask(door, "/v1/fleet/activate-node", **strange)[0] == 412
        status, reason = ask(door, **strange)
        assert status == 401
        assert "not enrolled" in reason
    assert "turned away 192.0.2.9" in caplog.text


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
    for length in (None, b"", b"-1", b"1e3", b"99999999999999999999", str(2**26 + 1).encode(), b"\xb2"):
        assert ask(door, content_length=length)[0] == 413
    assert ask(door, content_length=str(2**26).encode())[0] == 200


def test_of_two_headers_the_first_counts(door):
    keys = [site.flower.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for site in (C, A)]
    headers = [(b"flwr-public-key", base64.b64encode(key)) for key in keys]
    assert door._fault("/v1/fleet/pull-messages", headers)[0] == 401


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
def test_who_signs_on_takes_the_place_of_who_was_killed(door, flower, status, asked):
    inner = SitesDoor(flower, 2, door._keys)
    assert ask(inner, "/v1/fleet/activate-node", body=SIGN_ON)[0] == status
    assert flower.asked == asked


def test_a_request_to_sign_on_is_short(door):
    assert ask(door, "/v1/fleet/activate-node", content_length=b"65537")[0] == 413
    inner = SitesDoor(Flower(online=True), 2, door._keys)
    with pytest.raises(DecodeError):  # of the fake; Flower answers 400
        ask(inner, "/v1/fleet/activate-node", body=b"\xff")


def test_web_sockets_get_no_answer(door):
    assert ask(door, scope_type="websocket") == (None, "")
