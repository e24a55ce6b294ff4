"""Somebody who may log in on the server's machine: its port there starts no code, and is for one user alone."""

import os
import re
import socket

import pytest
from command_line import soon
from flwr.proto.control_pb2 import ListRunsRequest, StartAutomationRequest, StartRunRequest
from live_server import as_nobody, command, run_of

from fedglm.server.superlink.control import Control


def test_no_code_is_taken(live, tmp_path):
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w'); app = None"
    with Control(live.project) as control:
        before = len(control.list_runs())
        for case, options in {
            "code": {"component": "stranger:app", "code": code},
            "code that it does not name": {"code": code},
            "somebody else's component": {"component": "os:system"},
            "another publisher": {"publisher": "stranger"},
            "another project": {"name": "stranger"},
        }.items():
            assert live.post("/v1/control/start-run", run_of(**options)) == 403, case
        hub = StartRunRequest(app_spec="@flwrlabs/stranger")
        assert live.post("/v1/control/start-run", hub) == 403
        later = StartAutomationRequest(start_run_request=run_of(component="stranger:app", code=code))
        assert live.post("/v1/control/start-automation", later) == 403
        assert len(control.list_runs()) == before
        assert not soon(marker.exists, 2)
        # What is no run of ours is turned away, and not all.
        assert live.post("/v1/control/list-runs", ListRunsRequest()) == 200
        assert live.post("/v1/control/start-run", run_of()) == 200
        assert len(control.list_runs()) == before + 1


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to be another user")
def test_another_user_does_not_reach_the_port(live):
    trust = live.context()

    def visit():
        with socket.create_connection(("127.0.0.1", live.project.settings.control_port), timeout=10) as plain:
            trust.wrap_socket(plain, server_hostname="127.0.0.1").sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return True

    assert not as_nobody(visit)
    assert visit(), "its own user reaches it"


def test_no_secret_stands_on_a_command_line(live):
    """A run's process is caught while it starts; its token lets it do all that a run may."""
    seen = set()

    def lines():
        for pid in live.pids():
            seen.add(command(pid))
        return any("app_process" in line or "flwr-serverapp" in line for line in seen)

    assert live.post("/v1/control/start-run", run_of()) == 200
    assert soon(lines, 20), "no process of the run was seen"
    assert not [line for line in seen if re.search(r"[0-9a-f]{64}", line)]


def test_what_the_server_keeps_is_its_owner_s(live):
    folder = live.project.folder
    assert folder.stat().st_mode & 0o077 == 0
    for path in (live.project.state, live.project.runs, live.project.database, live.project.signing_key_path):
        assert path.stat().st_mode & 0o077 == 0, path
