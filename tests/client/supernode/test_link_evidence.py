"""A site's log shows how its node reached the server, whichever of the two was started first."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from command_line import soon
from site_folders import make_project, make_site, write_site_file
from tls_server import deaf_server, free_port, tls_server

from fedglm.cli.process.flower_environment import make_flower_environment
from fedglm.client.site.folder import open_site
from fedglm.client.supernode import link_evidence
from fedglm.client.supernode.link_evidence import LinkWatcher
from fedglm.privacy.log.signed_log import LOG, SignedLog
from fedglm.server.project.certificates import read_certificate


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("server"))


@pytest.fixture
def folder(project, tmp_path):
    """Of a site; `at` says where its server is."""
    return make_site(tmp_path, project, data={"source": "breast-cancer"}).folder


def at(folder, port):
    write_site_file(folder, site={"name": folder.name, "server": f"127.0.0.1:{port}"}, data={"source": "breast-cancer"})
    return open_site(folder)


def links(folder):
    texts = SignedLog(folder / "custody" / LOG).entries()
    return [entry for entry in map(json.loads, texts) if entry["kind"] == "link"]


def renewed(project, other):
    """Certificate of another key, by the same authority."""
    made = make_project(other)
    for name in ("authority", "authority_key"):
        getattr(made, name).write_bytes(getattr(project, name).read_bytes())
    made.issue(365)
    return made


def test_what_was_seen_stands_in_the_log_once(project, folder):
    with tls_server(project.certificate, project.server_key) as port:
        site = at(folder, port)
        watch = LinkWatcher(site)
        assert watch.record_link()
        assert watch.record_link()
        assert LinkWatcher(site).record_link()  # as after the node's restart
    (entry,) = links(folder)
    assert entry["tls"] == "TLSv1.3"
    assert entry["authority"] == site.kit.authority


def test_another_certificate_is_another_entry(project, folder, tmp_path):
    other = renewed(project, tmp_path / "other")
    watch, port = None, free_port()
    for made in (project, other):
        with tls_server(made.certificate, made.server_key, port=port):
            watch = watch or LinkWatcher(at(folder, port))
            assert watch.record_link()
    first, second = links(folder)
    assert first["certificate"] != second["certificate"]
    assert first["authority"] == second["authority"]


def test_what_was_not_seen_is_not_written(project, folder, tmp_path):
    assert not LinkWatcher(at(folder, free_port())).record_link()
    with deaf_server(says=b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert not LinkWatcher(at(folder, port)).record_link()
    foreign = make_project(tmp_path / "foreign")
    with tls_server(foreign.certificate, foreign.server_key) as port:
        assert not LinkWatcher(at(folder, port)).record_link()
    with tls_server(project.certificate, project.server_key) as port:
        site = at(folder, port)
        site.authority.write_bytes(site.authority.read_bytes() + foreign.authority.read_bytes())
        assert not LinkWatcher(site).record_link()
        site.authority.write_bytes(b"no certificate")
        assert not LinkWatcher(site).record_link()
    assert links(folder) == []


def test_a_log_that_cannot_be_written_ends_nothing(project, folder):
    with tls_server(project.certificate, project.server_key) as port:
        site = at(folder, port)
        log = site.custody_folder / LOG
        whole = log.read_bytes()
        log.write_bytes(b"damaged")
        watch = LinkWatcher(site)
        assert not watch.record_link()
        log.write_bytes(whole)
        assert watch.record_link()
    assert len(links(folder)) == 1


def test_a_run_that_is_announced_has_it_look_again(project, folder, tmp_path, monkeypatch):
    looks = []
    record_link = LinkWatcher.record_link
    monkeypatch.setattr(link_evidence, "_MIN_INTERVAL_S", 0.05)
    monkeypatch.setattr(LinkWatcher, "record_link", lambda watch: looks.append(record_link(watch)) or looks[-1])
    other, port = renewed(project, tmp_path / "other"), free_port()
    watch = LinkWatcher(at(folder, port))
    with tls_server(project.certificate, project.server_key, port=port):
        watch.start()
        assert soon(lambda: looks == [True])
        time.sleep(0.3)
        assert looks == [True]
    with tls_server(other.certificate, other.server_key, port=port):
        watch.request_check()
        assert soon(lambda: looks == [True, True])
    assert len(links(folder)) == 2


def test_a_node_that_was_started_before_its_server_shows_the_link_when_that_comes(project, folder, tmp_path):
    port = free_port()
    site = at(folder, port)
    command = [sys.executable, "-m", "fedglm.cli.client.node", str(site.folder)]
    with (tmp_path / "node.log").open("w") as log:
        node = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | make_flower_environment(tmp_path), start_new_session=True
        )
        try:
            said = tmp_path / "node.log"
            assert soon(lambda: "Connection attempt failed" in said.read_text())
            time.sleep(1)  # it has looked once
            assert links(folder) == []
            with tls_server(project.certificate, project.server_key, port=port, answers=False):
                assert soon(lambda: links(folder), 60), said.read_text()
            assert node.poll() is None, said.read_text()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait(10)
    (entry,) = links(folder)
    assert entry["authority"] == read_certificate(project.authority).sha256
