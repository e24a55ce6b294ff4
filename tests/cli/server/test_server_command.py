"""What `fedglm server` says of a project, and what stands in the way of a start; nothing is started here."""

import datetime
import os
import shutil
import socket

import pytest
from projects import Site, make_project
from run_files import run_files, write

from fedglm.cli.process.daemon import Daemon
from fedglm.core.findings import failures
from fedglm.server.project import certificates
from fedglm.server.project.folder import Project
from fedglm.server.project.settings import parse_settings
from fedglm.server.superlink import preflight

A, B = Site.make("a"), Site.make("b")


@pytest.fixture
def project(tmp_path):
    """A project with kits for a and b."""
    return make_project(tmp_path / "fl")


@pytest.fixture
def server(project, fedglm):
    """`fedglm server COMMAND ... -C PROJECT`."""
    return lambda *arguments: fedglm("server", *arguments, "-C", project.folder)


def test_status_tells_all_without_a_superlink(server, tmp_path):
    server("enrol", A.hand_over(tmp_path))
    server("enrol", B.hand_over(tmp_path))
    server("revoke", "b")
    found = server("status", "--json").json
    assert (found["running"], found["pid"], found["runs"], found["warnings"]) == (False, None, [], [])
    assert [(site["name"], site["status"]) for site in found["sites"]] == [("a", "enrolled"), ("b", "not enrolled")]
    assert [site["name"] for site in found["revoked"]] == ["b"]
    assert found["certificate"]["days_left"] in (364, 365)
    shown = server("status").out
    assert "does not run" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert server("stop").out == "no SuperLink runs\n"


def test_status_tells_of_the_runs_while_no_superlink_answers(server, project):
    for name, rounds in (("old", 2), ("new", 3)):
        folder = project.runs / name
        folder.mkdir(parents=True)
        write(folder, *run_files(rounds=rounds))
    (project.runs / "no-run").mkdir()
    found = {run["name"]: run for run in server("status", "--json").json["runs"]}
    assert found.keys() == {"old", "new"}
    assert (found["new"]["status"], found["new"]["uplink_bytes"]) == ("done", 3 * 4 * 100)
    assert "runs, 2 in all" in server("status").out


@pytest.mark.parametrize(("days", "said"), [(20, "ends on"), (-1, "ended on")])
def test_status_warns_of_a_certificate_that_ends(server, project, monkeypatch, days, said):
    lived = datetime.datetime.now(datetime.UTC).replace(microsecond=0) - datetime.timedelta(days=50)
    monkeypatch.setattr(certificates, "_now", lambda: lived)
    shutil.rmtree(project.authority.parent)
    project.authority.parent.mkdir(mode=0o700)
    certificates.make_authority(project.authority_key, project.authority, "fl")
    project.issue(50 + days)
    monkeypatch.undo()
    found = server("status", "--json").json
    assert said in found["warnings"][0]
    assert "--renew" in found["warnings"][0]


def test_nothing_stands_in_the_way(project, server, tmp_path):
    assert failures(preflight.check(project)) == []
    server("enrol", A.hand_over(tmp_path))
    assert "no site" not in " ".join(finding.detail for finding in preflight.check(project))


def refused(server, project):
    """The line that a start is refused with; nothing was started."""
    line = server("start").line()
    assert Daemon(project.state, "superlink").members() == []
    return line


def test_a_port_in_use_is_named(server, project):
    for port in (project.settings.port, project.settings.control_port):
        with socket.create_server(("127.0.0.1", port)):
            line = refused(server, project)
            assert f"port {port} at 127.0.0.1 cannot be opened" in line
            assert "--port N" in line


def test_keys_that_others_may_read_are_named(server, project):
    for path in (project.server_key, project.signing_key_path, project.authority_key):
        path.chmod(0o644)
        assert f"chmod 600 {path}" in refused(server, project)
        path.chmod(0o600)
    project.state.chmod(0o755)
    assert "chmod 700" in refused(server, project)


def test_certificates_that_do_not_serve_are_named(server, project, tmp_path):
    kept = {path: path.read_bytes() for path in (project.certificate, project.server_key, project.authority)}
    other = Project.make(tmp_path / "other", parse_settings({"name": "fl", "hosts": ["127.0.0.1"]}))
    project.authority.write_bytes(other.authority.read_bytes())
    assert "is not by the authority" in refused(server, project)
    project.authority.write_bytes(kept[project.authority])
    project.certificate.write_bytes(other.certificate.read_bytes())
    assert "do not belong together" in refused(server, project)
    project.certificate.unlink()
    assert "cannot read the certificate" in refused(server, project)
    project.certificate.write_bytes(kept[project.certificate])
    text = (project.folder / "project.toml").read_text().replace('    "127.0.0.1",', '    "fl.example.org",')
    (project.folder / "project.toml").write_text(text)
    assert "is not for fl.example.org" in refused(server, project)


def test_a_clock_that_is_behind_is_named(server, project):
    future = datetime.datetime.now().timestamp() + 90000
    os.utime(project.certificate, (future, future))
    assert "set the clock by a time server" in refused(server, project)


def test_a_full_disk_is_named(server, project, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)
    assert "1 MiB are free" in refused(server, project)


def test_all_that_is_wrong_is_said_at_once(server, project):
    project.server_key.chmod(0o644)
    with socket.create_server(("127.0.0.1", project.settings.port)):
        result = server("start")
    assert "chmod 600" in result.line()
    assert f"also: port {project.settings.port}" in result.err
