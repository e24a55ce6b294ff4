"""What is said before a node starts: what can be wrong, the remedy beside it, and never a word of a record."""

import datetime
import os
import shutil

import pytest
from custodies import MECHANISM, PRIVATE
from flwr.common import constant
from preflight_records import DATA, look, one, write_records
from site_folders import NAME, make_project, make_site, write_site_file
from tls_server import deaf_server, free_port, tls_server

from fedglm.client.preflight import checks as preflight_module
from fedglm.client.preflight.checks import preflight
from fedglm.client.preflight.link_checks import MAX_AHEAD_S, MAX_BEHIND_S, check_authority
from fedglm.client.site.folder import open_site
from fedglm.client.site.policy_signing import sign_site_policy
from fedglm.client.site.site_keys import make_keys
from fedglm.core.findings import failures
from fedglm.privacy.ledger.charges import Charge
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.policy.policy import Policy
from fedglm.server.project.certificates import issue_certificate

pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("server"))


@pytest.fixture
def site(tmp_path, project):
    made = make_site(tmp_path, project, data=DATA, policy={"declare_units": 20, "unit": "patient"})
    write_records(made)
    return made


def at(site, port, **changes):
    """The same site, with its server at another port."""
    write_site_file(site.folder, site={"name": NAME, "server": f"127.0.0.1:{port}", **changes}, data=DATA)
    return open_site(site.folder)


# --- all is well


def test_a_site_in_good_order(site, project):
    with tls_server(project.certificate, project.server_key) as port:
        found = preflight(at(site, port).folder)
    assert {finding.level for finding in found} == {"ok"}, found
    checks = ["software", "settings", "state", "keys", "authority", "server", "clock", "data", "policy", "ledger"]
    assert [finding.check for finding in found] == checks
    assert "40 rows, 20 values of patient" in next(finding.detail for finding in found if finding.check == "data")


def test_a_kit_as_it_comes_says_all_that_is_to_do(project, tmp_path):
    folder = tmp_path / "kit"
    shutil.copytree(project.kits / NAME, folder)
    found = {finding.check: finding for finding in preflight(folder, timeout_s=1)}
    assert {name for name, finding in found.items() if finding.level == "failure"} == {
        "keys",
        "server",
        "data",
        "policy",
    }
    assert "fedglm client keygen" in found["keys"].remedy
    assert "fedglm client sign-policy" in found["policy"].remedy


def test_a_folder_that_is_no_site(tmp_path):
    found = preflight(tmp_path)
    assert [(finding.check, finding.level) for finding in found] == [("software", "ok"), ("settings", "failure")]


# --- the way to the server


def test_the_window_is_flower_s():
    assert constant.SYSTEM_TIME_TOLERANCE == MAX_AHEAD_S
    assert constant.TIMESTAMP_TOLERANCE == MAX_BEHIND_S


@pytest.mark.parametrize(
    ("ahead_s", "level"),
    [(0, "ok"), (-4, "warning"), (-8, "failure"), (30, "ok"), (120, "warning"), (400, "failure"), (None, "warning")],
)
def test_a_clock_is_held_to_the_server_s(site, project, ahead_s, level):
    with tls_server(project.certificate, project.server_key, ahead_s=ahead_s) as port:
        clock = one(at(site, port), "clock")
    assert clock.level == level, clock
    if ahead_s is not None and level != "ok":
        assert ("behind" if ahead_s > 0 else "ahead of") in clock.detail
        assert "NTP" in clock.remedy


def test_an_authority_of_somebody_else_is_not_believed(site, tmp_path):
    foreign = make_project(tmp_path / "foreign")
    with tls_server(foreign.certificate, foreign.server_key) as port:
        server = one(at(site, port), "server")
    assert (server.level, server.transient) == ("failure", False)
    assert "is not by the kit's authority" in server.detail


def test_a_certificate_that_has_ended_or_ends_soon(site, tmp_path, project):
    def issued(days):
        path = tmp_path / f"{days}.pem"
        issue_certificate(project.authority_key, project.authority, project.server_key, path, ("127.0.0.1",), days)
        return path

    with tls_server(issued(0), project.server_key) as port:
        ended = one(at(site, port), "server")
    assert (ended.level, ended.transient) == ("failure", True), (
        "the operator renews it, and the node is to wait for that"
    )
    assert "has ended" in ended.detail
    assert "fedglm provision DIR --renew" in ended.remedy
    with tls_server(issued(9), project.server_key) as port:
        assert one(at(site, port), "server").level == "warning"


def test_a_certificate_for_another_name(site, project):
    with tls_server(project.certificate, project.server_key, address="127.0.0.2") as port:
        write_site_file(site.folder, site={"name": NAME, "server": f"127.0.0.2:{port}"}, data=DATA)
        found = one(open_site(site.folder), "server")
    assert (found.level, found.transient) == ("failure", False)
    assert "is not for this name or address" in found.detail


@pytest.mark.parametrize(
    ("server", "said"), [("deaf", "no answer from"), ("plain", "does not speak TLS"), ("none", "nothing listens at")]
)
def test_a_server_that_is_not_there_may_come_back(site, server, said):
    if server == "none":
        found = one(at(site, free_port()), "server")
    else:
        with deaf_server(says=b"SSH-2.0-OpenSSH\r\n" if server == "plain" else b"") as port:
            found = one(at(site, port), "server", timeout_s=0.5)
    assert (found.level, found.transient) == ("failure", True)
    assert said in found.detail
    assert failures([found]) == []


def test_a_name_that_nobody_knows(site):
    write_site_file(site.folder, site={"name": NAME, "server": "fl.invalid:8443"}, data=DATA)
    found = one(open_site(site.folder), "server")
    assert (found.transient, found.level) == (True, "failure")


def test_an_authority_that_is_not_the_kit_s(site, tmp_path):
    kit = site.authority.read_bytes()
    foreign = make_project(tmp_path / "foreign")
    for content, said in (
        (foreign.authority.read_bytes(), "is not the certificate that kit.toml names"),
        (kit + foreign.authority.read_bytes(), "holds 2 certificates instead of one"),
        (b"", "holds 0 certificates"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds 0 certificates"),
    ):
        site.authority.write_bytes(content)
        found = one(site, "authority", timeout_s=0.2)
        assert (found.level, said in found.detail) == ("failure", True), found
    site.authority.unlink()
    assert "cannot read" in one(site, "authority", timeout_s=0.2).detail


def test_an_authority_s_days(site):
    now = datetime.datetime.now(datetime.UTC)
    for days, level in ((0, "ok"), (3640, "warning"), (3660, "failure"), (-30, "failure")):
        assert check_authority(site, now + datetime.timedelta(days=days)).level == level


# --- keys, disk, software


def test_keys_that_are_open_missing_or_damaged(site):
    for path in (site.flower_key, site.signing_key):
        kept = path.read_bytes()
        path.chmod(0o640)
        found = one(site, "keys", timeout_s=0.2)
        assert f"chmod 600 {path}" in found.detail
        path.chmod(0o600)
        path.write_bytes(kept[:40])
        assert "is it whole" in one(site, "keys", timeout_s=0.2).detail
        path.unlink()
        assert one(site, "keys", timeout_s=0.2).level == "failure"
        path.write_bytes(kept)
        path.chmod(0o600)
    assert one(site, "keys", timeout_s=0.2).level == "ok"


def test_a_disk_that_is_full_or_closed(site, monkeypatch):
    usage = shutil.disk_usage(site.folder)
    for free, level in ((10 * 2**20, "failure"), (500 * 2**20, "warning"), (2**33, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert one(site, "state", timeout_s=0.2).level == level
    (site.folder / "closed").write_text("no folder")
    found = one(at(site, free_port(), state="closed"), "state")
    assert (found.level, "cannot be written" in found.detail) == ("failure", True)


def test_a_version_of_flower_that_nobody_tested(site, monkeypatch):
    monkeypatch.setattr(preflight_module, "version", lambda _: "1.99.0")
    assert "flwr>=1.41,<1.43" in one(site, "software", timeout_s=0.2).remedy


def test_a_gpu_that_is_not_there(site):
    if os.path.exists("/dev/nvidia0"):
        pytest.skip("there is one")
    assert 'device = "auto"' in one(at(site, free_port(), device="cuda"), "device").remedy


# --- policy and ledger


def sign(site, **changes):
    """Put another policy in force."""
    (site.folder / "policy.toml").write_text(Policy(**{"data_set": "notes", **PRIVATE, **changes}).to_toml())
    return sign_site_policy(site)


def test_what_is_wrong_with_a_policy(site):
    write_site_file(site.folder, data={"source": "records.csv"})
    site = open_site(site.folder)
    sign(site, declare_units=40)
    assert one(site, "policy", timeout_s=0.2).level == "ok"
    for changes, said in (
        ({"plans": (), "epsilon": None}, "it permits no run at all: not given are plans, epsilon"),
        ({"servers": ("0" * 64,)}, "does not list the server's key"),
        ({"state_encrypted": True}, "asks for encrypted state, and site.toml names no state_key"),
        ({"unit": "patient"}, "protects each 'patient', and the data tell units apart by 'record'"),
    ):
        sign(site, **changes)
        found = look(site, "policy", timeout_s=0.2)[0]
        assert (found.level, said in found.detail) == ("failure", True), found
    sign(site, servers=(site.kit.signing,), declare_units=500)
    (in_force, declared) = look(site, "policy", timeout_s=0.2)
    assert (in_force.level, declared.level) == ("ok", "warning")
    assert "declare_units is 500, and the data hold 40 units" in declared.detail


def test_a_policy_that_was_changed_and_not_signed(site):
    with (site.folder / "policy.toml").open("a") as file:
        file.write("# a remark\n")
    found = one(site, "policy", timeout_s=0.2)
    assert (found.level, "the older one is in force" in found.detail) == ("warning", True)
    sign_site_policy(site)
    assert one(site, "policy", timeout_s=0.2).level == "ok"
    with (site.custody_folder / "policy.toml").open("a") as file:
        file.write("# behind the signature's back\n")
    found = one(site, "policy", timeout_s=0.2)
    assert (found.level, "does not carry the signature" in found.detail) == ("failure", True)


def test_new_keys_need_the_policy_signed_again(site):
    make_keys(site.folder, NAME, site.flower_key, site.signing_key, replace=True)
    assert one(site, "policy", timeout_s=0.2).level == "failure"
    sign_site_policy(site)
    assert one(site, "policy", timeout_s=0.2).level == "ok"


def charge(site, number, mechanism):
    Ledger(site.custody_folder / "ledger.sqlite").charge(
        Charge(
            data_set="notes",
            commitment="1" * 64,
            run="run-1",
            round=number,
            purpose="update",
            mechanism=mechanism,
            plan="2" * 64,
            policy="3" * 64,
            release=f"{number:064}",
        ),
        None,
    )


def test_what_is_left_of_the_budget(site):
    write_site_file(site.folder, data={"source": "records.csv"})
    site = open_site(site.folder)
    sign(site, declare_units=40, epsilon=5.0)
    charge(site, 1, MECHANISM)
    found = one(site, "ledger", timeout_s=0.2)
    assert (found.level, "1 releases; epsilon " in found.detail, " of 5 is spent" in found.detail) == ("ok", True, True)
    sign(site, declare_units=40, epsilon=0.5)
    assert one(site, "ledger", timeout_s=0.2).level == "failure"
    sign(site, declare_units=40, epsilon=50.0)
    charge(site, 2, None)
    found = one(site, "ledger", timeout_s=0.2)
    assert (found.level, "released without noise before" in found.detail) == ("failure", True)
    (site.custody_folder / "ledger.sqlite").write_bytes(b"not a ledger")
    assert one(site, "ledger", timeout_s=0.2).level == "failure"
