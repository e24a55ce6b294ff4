"""A real SuperLink with TLS, started and stopped by the command, and real SuperNodes: who gets in, who does not."""

import base64
import datetime
import os
import shutil
import signal
import socket
import ssl
import sys
from pathlib import Path

import httpx
import pytest
from command_line import Process, soon
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node as NodeMessage
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from projects import Site, make_project
from super_node import SuperNode

from fedglm.cli.process.daemon import Daemon
from fedglm.cli.process.flower_environment import make_flower_environment
from fedglm.server.project import certificates
from fedglm.server.project.enrolment import enrol
from fedglm.server.project.folder import PROJECT, Project
from fedglm.server.project.settings import parse_settings
from fedglm.server.superlink.control import Control

pytestmark = pytest.mark.slow

ALL = {name: Site.make(name) for name in ("a", "b", "c", "d")}


class Server:
    """A project and the command that runs its SuperLink."""

    def __init__(self, folder, fedglm):
        self.folder = folder
        self.project = make_project(folder / "fl", sites=tuple(ALL))
        self.daemon = Daemon(self.project.state, "superlink")
        self._fedglm = fedglm

    def __call__(self, *arguments):
        return self._fedglm("server", *arguments, "-C", self.project.folder)

    def enrol(self, site):
        return self("enrol", site.hand_over(self.folder), "--json").json

    def last_seen(self, site):
        with Control(self.project) as control:
            (found,) = [node.last_seen for node in control.list_nodes() if node.key == site.identity.flower]
        return found

    def status_of(self, site):
        return {one["name"]: one["status"] for one in self("status", "--json").json["sites"]}[site.name]


@pytest.fixture(scope="module")
def server(tmp_path_factory, fedglm):
    """A running SuperLink; the site a was enrolled before it started."""
    made = Server(tmp_path_factory.mktemp("server"), fedglm)
    assert made.enrol(ALL["a"])["registered"] is False
    started = made("start")
    assert started.code == 0, started.err
    assert "registered: a" in started.out
    yield made
    made.daemon.stop()


def test_it_says_what_runs(server):
    found = server("status", "--json").json
    assert found["pid"] == server.daemon.pid()
    assert found["warnings"] == []
    assert server.status_of(ALL["a"]) == "registered"
    assert f"runs already, as process {found['pid']}" in server("start").line()
    assert "--insecure" not in Path(f"/proc/{found['pid']}/cmdline").read_text()


def test_a_site_that_is_enrolled_meanwhile_is_registered_at_once(server):
    assert server.enrol(ALL["b"])["registered"] is True
    assert server.status_of(ALL["b"]) == "registered"


def test_a_node_is_in_until_it_is_revoked(server, tmp_path):
    site = ALL["c"]
    server.enrol(site)
    with SuperNode(server.project, site, tmp_path) as node:
        assert soon(lambda: "SuperNode ID" in node.said, 60), node.said
        assert server.status_of(site) == "online"
        assert "taken off" in server("revoke", "c").out
        assert node.process.wait(60) == 0
    with SuperNode(server.project, site, tmp_path) as node:
        assert node.process.wait(60) != 0
        assert "not enrolled, or was revoked" in node.said
    renewed = Site.make("c")
    assert server.enrol(renewed)["registered"] is True
    with SuperNode(server.project, renewed, tmp_path) as node:
        assert soon(lambda: "SuperNode ID" in node.said, 60), node.said


def test_a_node_that_was_killed_signs_on_again_at_once(server, tmp_path):
    for _ in range(3):  # killed at the block's end
        with SuperNode(server.project, ALL["b"], tmp_path) as node:
            assert soon(lambda: "SuperNode ID" in node.said, 60), node.said
            assert "retrying" not in node.said.partition("SuperNode ID")[0]
            assert server.status_of(ALL["b"]) == "online"
    assert "taken for gone" in server.daemon.log.read_text()


def test_a_node_that_nobody_enrolled_is_told_so(server, tmp_path):
    with SuperNode(server.project, ALL["d"], tmp_path) as node:
        assert node.process.wait(60) != 0
        assert "not enrolled" in node.said
    assert "turned away 127.0.0.1" in server.daemon.log.read_text()
    assert server.status_of(ALL["d"]) == "not enrolled"


def test_a_node_trusts_no_other_authority(server, tmp_path):
    other = Project.make(tmp_path / "other", parse_settings({"name": "fl", "hosts": ["127.0.0.1"]}))
    with SuperNode(server.project, ALL["a"], tmp_path, authority=other.authority) as node:
        assert node.process.wait(60) != 0
        assert "certificate verify failed" in node.said.lower()
    assert server.status_of(ALL["a"]) == "registered"


def test_a_node_trusts_no_certificate_that_has_ended(tmp_path, monkeypatch):
    project, site = make_project(tmp_path / "fl"), ALL["a"]
    lived = datetime.datetime.now(datetime.UTC).replace(microsecond=0) - datetime.timedelta(days=50)
    monkeypatch.setattr(certificates, "_now", lambda: lived)
    shutil.rmtree(project.authority.parent)
    certificates.make_authority(project.authority_key, project.authority, "fl")
    project.issue(49)
    monkeypatch.undo()
    enrol(project, site.hand_over(tmp_path))
    daemon = Daemon(project.state, "superlink")
    environment = make_flower_environment(project.flower_home) | {PROJECT: str(project.folder)}
    up = "Application startup complete"
    daemon.start(
        [sys.executable, "-m", "fedglm.server.superlink.main"], environment, ready=lambda: up in "".join(daemon.tail())
    )
    try:
        with SuperNode(project, site, tmp_path) as node:
            assert node.process.wait(60) != 0
            assert "certificate has expired" in node.said
    finally:
        daemon.stop()


def post(server, path, message, *, port=None, headers=None):
    """A request as a stranger could make it, at the sites' port unless told otherwise."""
    url = f"https://127.0.0.1:{port or server.project.settings.port}{path}"
    kind = {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}
    verify = ssl.create_default_context(cafile=server.project.authority)
    with httpx.Client(verify=verify, trust_env=False) as client:
        return client.post(url, content=message.SerializeToString(), headers=kind | (headers or {}))


def test_a_stranger_registers_nothing_and_starts_nothing(server):
    with Control(server.project) as control:
        before = {node.key for node in control.list_nodes()}
        pem = ALL["d"].flower.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        request = RegisterNodeRequest(public_key=pem, name="d")
        for path in ("register-node", "start-run", "list-nodes", "../fleet/../control/register-node"):
            assert post(server, f"/v1/control/{path}", request).status_code == 403
        assert post(server, "/v1/runtime/acquire-task", request).status_code == 403
        assert {node.key for node in control.list_nodes()} == before
        assert control.list_runs() == []
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", server.project.settings.control_port), timeout=5)


def test_somebody_elses_key_without_its_signature_is_turned_away(server):
    pem = ALL["a"].flower.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with Control(server.project) as control:
        (node_id,) = [node.node_id for node in control.list_nodes() if node.key == ALL["a"].identity.flower]
    headers = {
        "flwr-public-key": base64.b64encode(pem).decode(),
        "flwr-timestamp": datetime.datetime.now(datetime.UTC).isoformat(),
        "flwr-signature": base64.b64encode(bytes(70)).decode(),
    }
    request = PullMessagesRequest(node=NodeMessage(node_id=node_id))
    assert post(server, "/v1/fleet/pull-messages", request, headers=headers).status_code == 401


def test_a_killed_superlink_starts_again_and_its_nodes_come_back(server, tmp_path):
    with SuperNode(server.project, ALL["a"], tmp_path) as node:
        assert soon(lambda: "SuperNode ID" in node.said, 60), node.said
        pid = server.daemon.pid()
        os.kill(pid, signal.SIGKILL)
        assert soon(lambda: server.daemon.pid() is None)
        found = server("status", "--json").json
        assert (found["running"], found["pid"]) == (False, None)
        server("revoke", "b")  # while nothing runs
        started = server("start")
        assert started.code == 0, started.err
        assert "taken off the SuperLink's list: 1" in started.out
        assert server.daemon.pid() != pid
        seen = server.last_seen(ALL["a"])
        assert soon(lambda: server.last_seen(ALL["a"]) > seen, 90), node.said
        assert server.status_of(ALL["a"]) == "online"
        assert node.process.poll() is None


def test_it_ends_with_all_that_it_started(server):
    assert len(server.daemon.members()) >= 2  # with Flower's SuperExec, in a session of its own
    assert server("stop").out == "the SuperLink has ended\n"
    assert server.daemon.members() == []
    for port in (server.project.settings.port, server.project.settings.control_port):
        with socket.create_server(("127.0.0.1", port)):
            pass
    assert server("stop").out == "no SuperLink runs\n"


def test_in_the_foreground_it_ends_with_the_signal(server):
    server("stop")
    with Process("server", "start", "--foreground", "-C", server.project.folder) as process:
        process.read_until("the SuperLink is up")
        assert server("status", "--json").json["warnings"] == []
        assert server.status_of(ALL["a"]) != "enrolled"
        os.kill(process.pid, signal.SIGTERM)
        result = process.finish(60)
        assert result.code == 0, result.err
        assert process.descendants() == set()
    assert server.daemon.members() == []


def test_a_renewed_certificate_needs_no_new_trust(server, tmp_path, fedglm):
    assert fedglm("provision", server.project.folder, "--renew", "--days", "10").code == 0
    started = server("start")
    assert "ends on" in started.err  # within a month: it says so
    assert started.code == 0
    with SuperNode(server.project, ALL["a"], tmp_path) as node:
        assert soon(lambda: "SuperNode ID" in node.said, 60), node.said
    server("stop")
