"""A certificate is renewed in its last month and taken into use by new connections, without a restart."""

import hashlib
import socket
import ssl
import threading

import pytest
from projects import make_project

from fedglm.server.errors import ProjectError
from fedglm.server.project.certificates import issue_certificate, read_certificate
from fedglm.server.superlink.certificate_renewal import CertificateRenewal


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path / "fed")


def issue(project, days):
    hosts = project.settings.hosts
    issue_certificate(project.authority_key, project.authority, project.server_key, project.certificate, hosts, days)
    return read_certificate(project.certificate)


def make_context(project):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(project.certificate, project.server_key)
    return context


def shown(project, context):
    """SHA-256 of the certificate that a site is shown, which trusts the project's authority."""
    near, far = socket.socketpair()

    def serve():
        with context.wrap_socket(far, server_side=True) as secured:
            secured.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    trusting = ssl.create_default_context(cafile=str(project.authority))
    with trusting.wrap_socket(near, server_hostname="127.0.0.1") as secured:
        certificate = secured.getpeercert(binary_form=True)
        secured.sendall(b"x")
    thread.join()
    return hashlib.sha256(certificate).hexdigest()


def test_in_its_last_month_a_certificate_is_renewed_and_shown_to_the_next_that_connects(project):
    old = issue(project, 29)
    context = make_context(project)
    renewal = CertificateRenewal(project, context)
    assert shown(project, context) == old.sha256
    renewal.check()
    new = read_certificate(project.certificate)
    assert new.sha256 != old.sha256
    assert new.days_left() > 300
    assert new.hosts == old.hosts
    assert shown(project, context) == new.sha256
    renewal.check()
    assert read_certificate(project.certificate).sha256 == new.sha256, "once is enough"


def test_before_that_it_stays_and_one_that_somebody_else_issued_is_taken_into_use(project):
    old = issue(project, 31)
    context = make_context(project)
    renewal = CertificateRenewal(project, context)
    renewal.check()
    assert read_certificate(project.certificate).sha256 == old.sha256
    new = issue(project, 200)
    assert shown(project, context) == old.sha256
    renewal.check()
    assert shown(project, context) == new.sha256


def test_without_the_authoritys_key_it_is_said_and_the_old_one_stays(project, caplog):
    old = issue(project, 10)
    context = make_context(project)
    project.authority_key.unlink()
    CertificateRenewal(project, context).check()
    assert "is not here to renew it: bring it" in caplog.text
    assert shown(project, context) == old.sha256


def test_a_damaged_certificate_is_refused_and_the_old_one_stays_in_use(project):
    old = issue(project, 100)
    context = make_context(project)
    renewal = CertificateRenewal(project, context)
    stranger = make_project(project.folder.parent / "stranger", sites=("x",))
    project.certificate.write_bytes(stranger.certificate.read_bytes())
    with pytest.raises(ProjectError):
        renewal.check()
    assert shown(project, context) == old.sha256
    project.certificate.write_text("nothing")
    with pytest.raises(ProjectError, match="holds no certificate"):
        renewal.check()
    assert shown(project, context) == old.sha256
