"""`fedglm client` from outside: keys, policy, checks, and a node that starts and ends without orphans."""

import datetime
import json
import re
import shutil
import stat
import subprocess
import sys
import time
import tomllib

import pytest
from command_line import soon
from custodies import OPEN
from site_folders import NAME, content_of, make_project, make_site, write_site_file
from tls_server import free_port, tls_server

from fedglm.cli.client import app
from fedglm.client.site.folder import open_site
from fedglm.client.supernode.main import make_flower_arguments
from fedglm.client.supernode.metrics import SiteCollector
from fedglm.privacy.custody.refusal_log import RefusalLog
from fedglm.privacy.errors import Refusal
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.keys.site_identity import SiteIdentity
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.policy_file import load_policy

pytestmark = pytest.mark.usefixtures("unsynced")

SLEEPER = """
import pathlib, sys, time
from fedglm.client.link.faults import LinkFault
from fedglm.client.link.state import LinkRecorder
recorder = LinkRecorder(pathlib.Path(sys.argv[1]), "here")
recorder.fail(LinkFault(sys.argv[2])) if sys.argv[2] else recorder.succeed()
time.sleep(600)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("server"))


@pytest.fixture
def kit(project, tmp_path):
    folder = tmp_path / "kit"
    shutil.copytree(project.kits / NAME, folder)
    return folder


@pytest.fixture
def site(tmp_path, project):
    return make_site(tmp_path, project, data={"source": "breast-cancer", "share": "0/2"})


def rights(path):
    return stat.S_IMODE(path.stat().st_mode)


# --- keygen


def test_keys_are_made_for_their_owner_alone_and_the_public_halves_handed_over(fedglm, kit):
    told = fedglm("client", "keygen", kit, "--json").json
    identity = SiteIdentity.from_text((kit / "berlin.pub").read_text())
    assert (told["site"], told["file"], told["new"]) == (NAME, str(kit / "berlin.pub"), True)
    assert told["fingerprints"] == identity.fingerprints
    assert identity.signing == SigningKey.load(kit / "custody" / "site.key").public
    assert rights(kit / "flower.key") == rights(kit / "custody" / "site.key") == 0o600
    assert (kit / "flower.key").read_text().startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert identity.flower.startswith("ecdsa-sha2-nistp384 ")


def test_a_key_for_the_node_s_state_is_made_on_demand(fedglm, kit):
    said = fedglm("client", "keygen", kit, "--state-key")
    assert 'put state_key = "state.key" into [site] of site.toml' in said.out
    path = kit / "state.key"
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    assert fedglm("client", "keygen", kit, "--state-key").code == 0
    assert path.read_bytes() == before


def test_again_nothing_changes_and_what_is_missing_is_made(fedglm, kit):
    first = fedglm("client", "keygen", kit, "--json").json
    before = content_of(kit)
    assert fedglm("client", "keygen", kit, "--json").json == first | {"new": False}
    assert content_of(kit) == before
    (kit / "berlin.pub").unlink()
    (kit / "custody" / "site.key").unlink()
    told = fedglm("client", "keygen", kit, "--json").json
    assert told["new"]
    assert told["fingerprints"]["flower"] == first["fingerprints"]["flower"]
    assert told["fingerprints"]["signing"] != first["fingerprints"]["signing"]


def test_new_keys_after_a_revocation(fedglm, kit):
    first = fedglm("client", "keygen", kit, "--json").json
    kept = (kit / "flower.key").read_bytes()
    second = fedglm("client", "keygen", kit, "--replace", "--json").json
    assert not set(first["fingerprints"].values()) & set(second["fingerprints"].values())
    (old,) = kit.glob("flower.key.*.old")
    assert (old.read_bytes(), rights(old)) == (kept, 0o600)


def test_a_site_s_folder_apart_from_the_kit(fedglm, kit, tmp_path):
    out = tmp_path / "site"
    out.mkdir()
    (out / "site.toml").write_text("[data]\nsource = 'digits'\n")
    assert fedglm("client", "keygen", kit, "--out", out, "--json").json["file"] == str(out / "berlin.pub")
    assert {path.name for path in out.iterdir()} == {path.name for path in kit.iterdir()} | {
        "berlin.pub",
        "custody",
        "flower.key",
    }
    assert tomllib.loads((out / "site.toml").read_text()) == {"data": {"source": "digits"}}
    assert not (kit / "flower.key").exists()


def test_keygen_where_no_kit_is(fedglm, tmp_path):
    assert "kit.toml is missing: name the folder of the kit" in fedglm("client", "keygen", tmp_path).line()
    assert "holds no kit.toml" in fedglm("client", "keygen", tmp_path, "--out", tmp_path / "x").line()


def test_a_key_that_others_may_read_is_not_taken_up(fedglm, kit):
    fedglm("client", "keygen", kit)
    (kit / "flower.key").chmod(0o644)
    assert "chmod 600" in fedglm("client", "keygen", kit).line()


# --- sign-policy


def test_the_policy_in_force_is_the_file_that_was_signed_to_the_byte(fedglm, kit):
    fedglm("client", "keygen", kit)
    written = "# for the ethics board\n" + Policy(data_set="notes", **OPEN).to_toml()
    (kit / "policy.toml").write_text(written)
    said = fedglm("client", "sign-policy", kit)
    assert (said.code, "no privacy guarantee" in said.out) == (0, True)
    key = SigningKey.load(kit / "custody" / "site.key").public
    assert load_policy(kit / "custody" / "policy.toml", key).data_set == "notes"
    assert (kit / "custody" / "policy.toml").read_text() == written
    ledger = (kit / "custody" / "ledger.sqlite").read_bytes()
    (kit / "policy.toml").write_text(Policy(data_set="others").to_toml())
    said = fedglm("client", "sign-policy", kit)
    assert "it permits no run at all; not given are servers" in said.err
    assert load_policy(kit / "custody" / "policy.toml", key).data_set == "others"
    assert (kit / "custody" / "ledger.sqlite").read_bytes() == ledger


def test_a_policy_that_is_none_leaves_the_older_one_in_force(fedglm, site):
    in_force = content_of(site.custody_folder)
    for content, said in (("epsilom = 3", "did you mean epsilon"), ("x" * 70_000, "longer than 65536 bytes")):
        (site.folder / "policy.toml").write_text(content)
        assert said in fedglm("client", "sign-policy", site.folder).line()
    (site.folder / "policy.toml").write_bytes(b"\xff")
    assert "is not UTF-8" in fedglm("client", "sign-policy", site.folder).line()
    (site.folder / "policy.toml").unlink()
    assert "cannot read" in fedglm("client", "sign-policy", site.folder).line()
    assert content_of(site.custody_folder) == in_force


def test_a_policy_without_keys(fedglm, kit):
    assert "run fedglm client keygen first" in fedglm("client", "sign-policy", kit).line()


def test_a_site_answers_for_its_rows_when_it_signs(fedglm, kit):
    """In a run nobody hears of a row that cannot be used."""
    fedglm("client", "keygen", kit)
    (kit / "policy.toml").write_text(Policy(data_set="notes", **OPEN).to_toml())
    data = {"source": "r.csv", "text_field": "note", "label_field": "ill", "class_names": ["0", "1"]}
    write_site_file(kit, data=data)
    (kit / "r.csv").write_text("note,ill\na,0\nb,1\n,1\n")
    assert fedglm("client", "sign-policy", kit).code == 0
    before = content_of(kit / "custody")
    with (kit / "r.csv").open("a") as file:
        file.write("Anna,2\nBert\n")
    line = fedglm("client", "sign-policy", kit).line()
    assert "1 row of a class that is not named (first in line 5), 1 row that cannot be parsed (first in line 6)" in line
    assert "--leave-out" in line
    assert content_of(kit / "custody") == before
    said = fedglm("client", "sign-policy", kit, "--leave-out")
    assert (said.code, "left out in every run: 1 row of a class" in said.err) == (0, True)
    assert "Anna" not in line + said.out + said.err
    (kit / "r.csv").unlink()
    assert fedglm("client", "sign-policy", kit).code == 0, "what cannot be read is for fedglm client check to say"


# --- check


def test_check_tells_what_is_wrong_and_exits_with_2(fedglm, kit):
    write_site_file(kit, site={"name": NAME, "server": f"127.0.0.1:{free_port()}"})
    said = fedglm("client", "check", kit)
    assert said.code == 2
    assert max(len(line) for line in said.out.splitlines()) <= 100
    told = {finding["check"]: finding for finding in json.loads(fedglm("client", "check", kit, "--json").out)}
    assert (told["keys"]["level"], told["software"]["level"]) == ("failure", "ok")


def test_check_of_a_site_in_good_order(fedglm, site, project):
    with tls_server(project.certificate, project.server_key) as port:
        server = f"127.0.0.1:{port}"
        write_site_file(site.folder, site={"name": NAME, "server": server}, data={"source": "breast-cancer"})
        said = fedglm("client", "check", site.folder)
    assert (said.code, said.err) == (0, ""), said.out


# --- start, status, stop


def test_the_node_s_command(site):
    argv = make_flower_arguments(site, "/key", "/secret")
    options = dict(zip(argv[::2], argv[1::2], strict=True))
    assert options["--root-certificates"] == str(site.folder / "ca.pem")
    assert options["--superlink"] == "127.0.0.1:8443"
    assert options["--auth-supernode-private-key"] == "/key"
    assert options["--node-config"] == f'site="{site.folder}"'
    assert not {"--host", "--port", "--insecure"} & set(argv)  # its own interface is a socket of the site's folder
    assert options["--superexec-auth-secret-file"] == "/secret"


def test_flower_reads_the_folder_that_was_told(site):
    from flwr.common.config import parse_config_args

    argv = make_flower_arguments(site, "/key", "/secret")
    config = argv[argv.index("--node-config") + 1]
    assert parse_config_args([config]) == {"site": str(site.folder)}


def test_a_folder_that_flower_cannot_be_told_of(fedglm, site):
    moved = site.folder.rename(site.folder.with_name('a "site"'))
    assert "rename it" in fedglm("client", "start", moved).line()


@pytest.fixture
def sleeper(monkeypatch):
    """A node that connects at once, or has the fault that the returned function is told, and then sleeps."""

    def tell(fault=""):
        monkeypatch.setattr(app, "node_command", lambda site: [sys.executable, "-c", SLEEPER, str(site.state), fault])

    tell()
    return tell


@pytest.mark.usefixtures("sleeper")
def test_a_node_starts_once_and_ends(fedglm, site):
    told = fedglm("client", "status", site.folder, "--json").json
    assert (told["pid"], told["releases"], told["refusals"], told["last_work"]) == (None, 0, 0, None)
    said = fedglm("client", "start", site.folder)
    try:
        assert (said.code, "connected to 127.0.0.1:8443" in said.out) == (0, True), said
        assert "warning: server: nothing listens" in said.err  # which is no reason not to start
        told = fedglm("client", "status", site.folder, "--json").json
        pid = told["pid"]
        assert (told["connected"], told["link_fault"]) == (True, None)
        assert f"process {pid}" in said.out
        assert f"runs already, as process {pid}" in fedglm("client", "start", site.folder).line()
        assert "runs, process" in fedglm("client", "status", site.folder).out
    finally:
        stopped = fedglm("client", "stop", site.folder)
    assert "has ended" in stopped.out
    assert soon(lambda: fedglm("client", "status", site.folder, "--json").json["pid"] is None)
    assert "no node of berlin runs" in fedglm("client", "stop", site.folder).out


def test_a_node_that_the_server_does_not_admit_is_ended_and_the_remedy_named(fedglm, site, sleeper):
    sleeper("not_admitted")
    assert "its keys are not enrolled, or were revoked" in fedglm("client", "start", site.folder).line()
    assert fedglm("client", "status", site.folder, "--json").json["pid"] is None


def link_figures(site):
    """What Prometheus is told of the link, by name and fault."""
    families = [
        family for family in SiteCollector(site).collect() if "link" in family.name or "connected" in family.name
    ]
    return {
        family.name: {sample.labels.get("fault", ""): sample.value for sample in family.samples} for family in families
    }


def test_a_node_without_a_link_stays_and_says_since_when_and_why(fedglm, site, sleeper, monkeypatch):
    monkeypatch.setattr(app, "_PATIENCE_S", 1.0)
    sleeper("expired")
    said = fedglm("client", "start", site.folder)
    try:
        assert said.code == 0
        assert "there is no link to 127.0.0.1:8443 yet (the certificate of 127.0.0.1:8443 has ended)" in said.out
        told = fedglm("client", "status", site.folder, "--json").json
        assert (told["connected"], told["link_fault"]["code"]) == (False, "expired")
        assert abs(datetime.datetime.fromisoformat(told["link_since"]).timestamp() - time.time()) < 60
        assert link_figures(site)["fedglm_site_connected"] == {"": 0}
        assert {name for name, value in link_figures(site)["fedglm_site_link_fault"].items() if value} == {"expired"}
        shown = " ".join(fedglm("client", "status", site.folder).out.split())
        assert "not connected since" in shown
        assert "has ended: tell the server's operator: fedglm provision DIR --renew" in shown
    finally:
        fedglm("client", "stop", site.folder)
    told = fedglm("client", "status", site.folder, "--json").json
    assert (told["connected"], told["link_since"], told["link_fault"]) == (False, None, None), "it tells nothing of now"


@pytest.mark.usefixtures("sleeper")
def test_a_node_that_would_not_do_its_work_is_not_started(fedglm, site):
    write_site_file(site.folder, data={"source": "gone.csv"})
    site.flower_key.chmod(0o644)
    said = fedglm("client", "start", site.folder)
    assert said.code == 2
    assert said.err.splitlines()[-1].startswith("fedglm: keys: others than its owner may use the key")
    assert "failure: data: " in said.err
    assert fedglm("client", "status", site.folder, "--json").json["pid"] is None


def test_status_tells_what_was_refused_and_what_is_missing(fedglm, site):
    log = RefusalLog(site.custody_folder / "refusals.jsonl")
    log.record(Refusal("codecs", "the codec zip is not listed"), run="run-1", round_number=0)
    (site.home / "model-1").mkdir(parents=True)
    (site.home / "model-1" / "state.json").write_text("{}")
    told = fedglm("client", "status", site.folder, "--json").json
    assert told["refusals"] == 1
    assert (told["last_refusal"]["rule"], told["last_work"] is None) == ("codecs", False)
    assert told["policy"] == Policy.from_toml((site.folder / "policy.toml").read_text()).sha256
    said = fedglm("client", "status", site.folder)
    assert "by rule codecs" in said.out
    assert max(len(line) for line in said.out.splitlines()) <= 100


def test_status_of_a_kit_as_it_comes(fedglm, kit):
    told = fedglm("client", "status", kit, "--json").json
    assert (told["policy"], told["epsilon_left"], told["pid"]) == (None, None, None)
    assert "none is signed" in fedglm("client", "status", kit).out


def test_the_command_answers_before_it_imports_torch():
    code = """
import sys
import time
import fedglm.cli.client.app, fedglm.client.preflight.checks, fedglm.client.site.folder, fedglm.client.supernode.main
print(sorted({"torch", "flwr", "transformers"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_site_is_opened_from_a_relative_path(fedglm, site, monkeypatch):
    monkeypatch.chdir(site.folder)
    assert fedglm("client", "status", "--json").json["site"] == NAME
    assert open_site(site.folder) == site


def test_a_codec_that_nobody_knows_is_noted_when_the_policy_is_signed(fedglm, site):
    path = site.folder / "policy.toml"
    path.write_text(re.sub(r"(?ms)^codecs = \[.*?\]$", 'codecs = ["topksign", "int8"]', path.read_text()))
    signed = fedglm("client", "sign-policy", site.folder)
    assert signed.code == 0
    assert "knows no codec topksign; it knows dense-fp32" in signed.err
