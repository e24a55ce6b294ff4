"""The project folder of a server: keys, certificates, kits; made once, made again, made after a crash."""

import datetime
import ipaddress
import os
import re
import socket
import ssl
import stat
import threading
import tomllib
import zipfile

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from projects import files_of

from fedglm.client.site.settings import read_kit_file, read_site_file
from fedglm.core import files
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.policy.policy import Policy
from fedglm.server.errors import ProjectError
from fedglm.server.project import certificates, private_keys
from fedglm.server.project.folder import Project
from fedglm.server.project.kits import format_fingerprint, write_kit
from fedglm.server.project.settings import parse_settings

SECRET = re.compile(rb"PRIVATE KEY")


@pytest.fixture
def folder(tmp_path, fedglm):
    """A project with two kits."""
    path = tmp_path / "fl"
    made = fedglm("provision", path, "--host", "fl.example.org", "--host", "192.0.2.7", "--site", "a", "--site", "b")
    assert made.code == 0, made.err
    return path


def authority_of(folder):
    return x509.load_pem_x509_certificate((folder / "ca" / "ca.pem").read_bytes())


def certificate_of(folder):
    return x509.load_pem_x509_certificate((folder / "server" / "server.pem").read_bytes())


def verify(folder, subject, *, authority=None, when=None):
    builder = PolicyBuilder().store(Store([authority or authority_of(folder)]))
    if when is not None:
        builder = builder.time(when)
    return builder.build_server_verifier(subject).verify(certificate_of(folder), [])


def test_a_project_is_made_and_told_of(tmp_path, fedglm):
    about = fedglm("provision", tmp_path / "fl", "--host", "FL.Example.org.", "--site", "bern", "--json").json
    project = Project.open(tmp_path / "fl")
    assert about["name"] == "fl"
    assert about["address"] == "fl.example.org:8443"
    assert about["certificate"]["hosts"] == ["fl.example.org", "localhost", "127.0.0.1"]
    assert about["signing"] == project.signing_key.public.fingerprint()
    assert about["kits"] == {"bern": str(tmp_path / "fl" / "kits" / "bern.zip")}
    said = fedglm("provision", tmp_path / "fl").out
    assert about["signing"] in said
    assert about["authority"] in said
    assert max(map(len, said.splitlines()[:-3])) <= 100


def test_private_keys_are_their_owners_alone(folder):
    found = {name: content for name, content in files_of(folder).items() if SECRET.search(content)}
    assert found.keys() == {"ca/ca.key", "server/server.key", "server/signing.key"}
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in found} == {0o600}
    assert stat.S_IMODE((folder / "state").stat().st_mode) == 0o700


def test_keys_are_private_from_the_moment_they_exist(tmp_path, monkeypatch):
    rights = []

    def spy(source, target, **_):
        rights.append((target.name, stat.S_IMODE(source.stat().st_mode)))
        link(source, target)

    link = files.os.link
    monkeypatch.setattr(files.os, "link", lambda source, target: spy(files.Path(source), files.Path(target)))
    Project.make(tmp_path / "fl", parse_settings({"name": "fl", "hosts": ["h"]}))
    assert rights == [("ca.key", 0o600), ("server.key", 0o600), ("signing.key", 0o600)]


def test_a_second_time_adds_and_replaces_nothing(folder, fedglm):
    before = files_of(folder)
    assert fedglm("provision", folder).code == 0
    assert files_of(folder) == before
    assert fedglm("provision", folder, "--site", "c").code == 0
    after = files_of(folder)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[1] for name in after.keys() - before.keys()} == {"c", "c.zip"}


def test_kits_hold_nothing_secret(folder):
    secrets = [content for content in files_of(folder).values() if SECRET.search(content)]
    raw = SigningKey.load(folder / "server" / "signing.key")._private.private_bytes_raw()
    lines = {line for content in secrets for line in content.splitlines() if b"-----" not in line}
    for name in ("a", "b"):
        with zipfile.ZipFile(folder / "kits" / f"{name}.zip") as archive:
            packed = {entry: archive.read(entry) for entry in archive.namelist()}
        assert packed == {f"{name}/{key}": value for key, value in files_of(folder / "kits" / name).items()}
        for content in packed.values():
            assert not SECRET.search(content)
            assert raw.hex().encode() not in content
            assert not any(line in content for line in lines)


def test_a_site_can_use_its_kit(folder):
    kit, project = folder / "kits" / "a", Project.open(folder)
    known = read_kit_file(kit)
    assert (known.federation, known.site, known.server) == ("fl", "a", "fl.example.org:8443")
    assert known.signing == project.signing_key.public.hex
    assert known.authority == certificates.read_certificate(kit / "ca.pem").sha256
    assert read_site_file(kit).data.source is None
    text = (kit / "site.toml").read_text()
    (kit / "site.toml").write_text(re.sub(r"(?m)^#(?=\w)", "", text).replace('share = "0/4"', ""))  # every example
    settings = read_site_file(kit)
    assert (settings.site.name, settings.data.source, settings.data.unit_field) == ("a", "records.csv", "patient_id")
    assert settings.site.server == known.server
    policy = Policy.from_toml((kit / "policy.toml").read_text())
    assert policy == Policy(data_set="a-data", servers=(known.signing,))
    readme = (kit / "README.txt").read_text()
    assert project.signing_key.public.fingerprint() in readme
    assert format_fingerprint(known.authority) in readme


def test_what_was_filled_in_for_a_site_stays(folder, fedglm):
    for name in ("policy.toml", "site.toml"):
        path = folder / "kits" / "a" / name
        path.write_text(path.read_text() + "\n# filled in\n")
    assert fedglm("provision", folder, "--host", "moved.example.org").code == 0
    with zipfile.ZipFile(folder / "kits" / "a.zip") as archive:
        for name in ("policy.toml", "site.toml"):
            assert archive.read(f"a/{name}").endswith(b"\n# filled in\n")
    assert read_kit_file(folder / "kits" / "a").server == "moved.example.org:8443"


def test_the_certificate_is_for_its_hosts_and_by_its_authority(folder, tmp_path):
    for name in ("fl.example.org", "localhost"):
        verify(folder, x509.DNSName(name))
    for address in ("192.0.2.7", "127.0.0.1"):
        verify(folder, x509.IPAddress(ipaddress.ip_address(address)))
    with pytest.raises(VerificationError):
        verify(folder, x509.DNSName("other.example.org"))
    other = Project.make(tmp_path / "other", parse_settings({"name": "fl", "hosts": ["fl.example.org"]}))
    with pytest.raises(VerificationError):
        verify(folder, x509.DNSName("fl.example.org"), authority=authority_of(other.folder))
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=366)
    with pytest.raises(VerificationError):
        verify(folder, x509.DNSName("fl.example.org"), when=later)


def test_the_certificates_say_what_they_are_for(folder):
    server, authority = certificate_of(folder), authority_of(folder)
    get = server.extensions.get_extension_for_class
    assert get(x509.BasicConstraints).critical
    assert not get(x509.BasicConstraints).value.ca
    assert list(get(x509.ExtendedKeyUsage).value) == [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]
    usage = get(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert get(x509.AuthorityKeyIdentifier).value.key_identifier == identifier
    of_authority = authority.extensions.get_extension_for_class(x509.KeyUsage).value
    assert of_authority.key_cert_sign
    assert not of_authority.digital_signature
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def handshake(folder, name, cafile):
    """TLS over a socket pair, as a node does it; the error of the node's side, or None."""
    ours, theirs = socket.socketpair()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server" / "server.pem", folder / "server" / "server.key")
    trust = ssl.create_default_context(cafile=cafile)
    trust.verify_flags |= ssl.VERIFY_X509_STRICT

    def serve():
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with trust.wrap_socket(ours, server_hostname=name) as done:
            assert done.version() == "TLSv1.3"
    except ssl.SSLCertVerificationError as exc:
        return exc.verify_message
    finally:
        ours.close()
        thread.join()
    return None


def test_a_node_that_looks_strictly_trusts_it(folder, tmp_path):
    authority = folder / "ca" / "ca.pem"
    assert handshake(folder, "fl.example.org", authority) is None
    assert handshake(folder, "192.0.2.7", authority) is None
    assert "Hostname mismatch" in handshake(folder, "fl2.example.org", authority)
    other = Project.make(tmp_path / "other", parse_settings({"name": "fl", "hosts": ["fl.example.org"]}))
    assert handshake(folder, "fl.example.org", other.authority) is not None


def test_renewal_is_a_new_certificate_of_the_same_keys(folder, fedglm):
    before, first = files_of(folder), certificate_of(folder)
    assert fedglm("provision", folder, "--renew", "--days", "30").code == 0
    after, second = files_of(folder), certificate_of(folder)
    assert {name for name in before if before[name] != after[name]} == {"server/server.pem"}
    assert first.serial_number != second.serial_number
    assert first.public_key() == second.public_key()
    verify(folder, x509.DNSName("fl.example.org"))
    assert certificates.read_certificate(folder / "server" / "server.pem").days_left() == pytest.approx(30, abs=0.1)


def test_a_server_that_moves_gets_a_certificate_and_kits_for_its_new_place(folder, fedglm):
    assert fedglm("provision", folder, "--host", "2001:DB8::1", "--port", "9000").code == 0
    verify(folder, x509.IPAddress(ipaddress.ip_address("2001:db8::1")))
    assert read_kit_file(folder / "kits" / "b").server == "[2001:db8::1]:9000"
    assert Project.open(folder).settings.control_port == 8444


def test_the_authoritys_key_may_be_kept_elsewhere(folder, fedglm, tmp_path):
    (folder / "ca" / "ca.key").rename(tmp_path / "ca.key")
    assert fedglm("provision", folder, "--site", "c").code == 0
    assert "ca.key: No such file" in fedglm("provision", folder, "--renew").line()
    assert not (folder / "ca" / "ca.key").exists()


def test_flowers_commands_find_the_superlink_on_this_machine_alone(folder):
    settings = tomllib.loads((folder / "flwr" / "config.toml").read_text())["superlink"]
    assert settings == {
        "default": "fedglm",
        "fedglm": {"address": "127.0.0.1:8444", "root-certificates": str(folder / "ca" / "ca.pem")},
    }


@pytest.mark.parametrize("renew", [False, True])
def test_a_killed_provision_is_taken_up(tmp_path, monkeypatch, renew):
    class PowerCut(BaseException):
        pass

    settings = parse_settings({"name": "fl", "hosts": ["fl.example.org"]})
    folder, sync, seen = tmp_path / "fl", files.sync_folder, {}

    def fail_at(step):
        left = iter(range(step))

        def cut(path):
            sync(path)
            if next(left, None) is None:
                raise PowerCut

        monkeypatch.setattr(files, "sync_folder", cut)

    for step in range(100):
        fail_at(step)
        try:
            write_kit(Project.make(folder, settings, renew=renew), "a")
        except PowerCut:
            keys = {name: content for name, content in files_of(folder).items() if SECRET.search(content)}
            assert all(keys[name] == content for name, content in seen.items())
            seen |= keys
            continue
        break
    assert step > 5
    assert len(seen) == 3
    monkeypatch.undo()
    verify(folder, x509.DNSName("fl.example.org"))
    certificates.check_chain(folder / "server" / "server.pem", folder / "server" / "server.key", folder / "ca/ca.pem")
    assert [name for name in files_of(folder) if "/." in f"/{name}"] == []


WRONG = [
    ([], "--host is missing"),
    (["--host", "https://fl.example.org"], "is no host"),
    (["--host", "fl.example.org:8443"], "is no host"),
    (["--host", "*.example.org"], "is no host"),
    (["--host", "a..b"], "is no host"),
    (["--host", "256.1.1.1"], "is no host"),
    (["--host", ""], "is no host"),
    (["--host", "h", "--site", "../x"], "cannot name a site"),
    (["--host", "h", "--site", ".x"], "cannot name a site"),
    (["--host", "h", "--site", "x.zip"], "cannot name a site"),
    (["--host", "h", "--site", "x" * 65], "cannot name a site"),
    (["--host", "h", "--name", "a b"], "cannot name a site"),
    (["--host", "h", "--port", "0"], "port: input should be greater"),
    (["--host", "h", "--port", "8443", "--control-port", "8443"], "port and control_port are both 8443"),
    (["--host", "h", "--listen", "eth0"], "give an IP address"),
    (["--host", "h", "--days", "0"], "--days"),
    (["--host", "h", "--days", "9999"], "--days"),
]


@pytest.mark.parametrize(("options", "said"), WRONG, ids=[" ".join(options) or "nothing" for options, _ in WRONG])
def test_a_wrong_option_is_one_line_and_makes_nothing(fedglm, tmp_path, options, said):
    assert said in fedglm("provision", tmp_path / "fl", *options).line()
    assert not (tmp_path / "fl").exists()


def test_a_folder_with_something_else_is_left_alone(fedglm, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    assert "holds something else" in fedglm("provision", tmp_path, "--host", "h", "--name", "fl").line()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_project_is_one_line(folder, fedglm):
    def spoil(name, content, *options):
        path = folder / name
        before = path.read_bytes()
        path.write_bytes(content)
        try:
            return fedglm("provision", folder, *options).line()
        finally:
            path.write_bytes(before)

    assert "unknown key prot: did you mean port" in spoil("project.toml", b'name="fl"\nhosts=["h"]\nprot=1\n')
    assert "cannot read" in spoil("project.toml", b"name = \n")
    assert "holds no certificate" in spoil("server/server.pem", b"x")
    assert "holds no unencrypted EC P-384 key" in spoil("server/server.key", b"x", "--renew")
    other = private_keys.generate_private_key(private_keys.SECP384R1())
    pem = other.private_bytes(private_keys.Encoding.PEM, private_keys.PrivateFormat.PKCS8, private_keys.NoEncryption())
    assert "do not belong together" in spoil("ca/ca.key", pem, "--renew")
    (folder / "ca" / "ca.key").chmod(0o640)
    assert "chmod 600" in fedglm("provision", folder, "--renew").line()
    assert fedglm("provision", folder).code == 0


def test_a_pipe_in_the_place_of_a_key_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "ca.key", 0o600)
    with pytest.raises(ProjectError, match="no plain file"):
        private_keys.load_key(tmp_path / "ca.key")


def test_the_name_of_a_federation_stays(folder, fedglm):
    assert "its name stands in what sites hold" in fedglm("provision", folder, "--name", "other").line()


def test_no_certificate_outlives_its_authority(folder, monkeypatch):
    later = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(days=3600)
    monkeypatch.setattr(certificates, "_now", lambda: later)
    with pytest.raises(ProjectError, match=r"ends in \d+ days"):
        Project.open(folder).issue(365)


def test_an_address_of_ipv6_is_shown_with_its_brackets(fedglm, tmp_path):
    assert "sites reach it at [fd00::1]:8443;" in fedglm("provision", tmp_path / "fl", "--host", "fd00::1").out
    assert "sites reach it at [fd00::1]:8443" in fedglm("server", "status", "-C", tmp_path / "fl").out
