"""Bundles and proofs: what a role may read is in them and nothing else, and whatever is changed is found."""

import io
import json
import zipfile

import pytest
from audited_run import make_run

from fedglm.privacy.audit_bundle import MANIFEST, ROLES, export
from fedglm.privacy.audit_checks import failed
from fedglm.privacy.audit_verify import verify_anything
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys import SigningKey
from fedglm.privacy.proofs import check_proof, prove_entry, prove_growth

KEY = SigningKey.generate()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        folder = make_run(tmp_path_factory.mktemp("audited") / "run")
        (folder / "nodes" / "a" / "custody" / "refusals.jsonl").write_text("{}\n")
        (folder / "audit" / "report.html").write_text("<html></html>")
        return folder


@pytest.fixture
def bundle(run, tmp_path):
    export(run, tmp_path / "bundle.zip", "auditor", KEY)
    return tmp_path / "bundle.zip"


def changed(bundle, change):
    """The bundle after `change` of its contents by name."""
    with zipfile.ZipFile(bundle) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    change(contents)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    bundle.write_bytes(out.getvalue())
    return bundle


def test_a_bundle_is_verified_as_its_folder_is(bundle):
    found = verify_anything(bundle)
    assert found.held
    assert {check.subject for check in found.checks} == {"bundle", "server", "a", "b", "c"}
    assert len(found.sites) == 3


@pytest.mark.parametrize("role", ROLES)
def test_a_role_reads_what_it_may_and_no_secret_is_in_any(run, tmp_path, role):
    names = export(run, tmp_path / "bundle.zip", role, KEY)
    assert ("nodes/a/custody/refusals.jsonl" in names) == (role == "regulator")
    assert ("nodes/a/custody/ledger.sqlite" in names) == (role != "public")
    assert "audit/report.html" in names
    assert not [name for name in names if name.endswith((".key", "salt", ".bin", "state.json", ".safetensors"))]
    content = (tmp_path / "bundle.zip").read_bytes()
    for site in "abc":
        custody = run / "nodes" / site / "custody"
        assert (custody / "site.key").read_bytes() not in content
        assert (custody / "salt").read_bytes() not in content
    assert verify_anything(tmp_path / "bundle.zip").held


def test_the_log_is_in_it_as_lines_too(bundle):
    with zipfile.ZipFile(bundle) as archive:
        lines = archive.read("nodes/a/custody/log.jsonl").decode().splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(1, len(lines) + 1))
    assert json.loads(lines[0])["kind"] == "opened"


@pytest.mark.parametrize(
    "change",
    [
        lambda contents: contents.update({"rounds.jsonl": contents["rounds.jsonl"] + b" "}),
        lambda contents: contents.pop("rounds.jsonl"),
        lambda contents: contents.update({"more.txt": b"more"}),
        lambda contents: contents.update({"nodes/a/custody/log.jsonl": b"{}\n"}),
        lambda contents: contents.update({"MANIFEST.sig": b"00" * 64}),
        lambda contents: contents.update({MANIFEST: contents[MANIFEST].replace(b"auditor", b"regulat")}),
    ],
    ids=["edited", "dropped", "added", "lines", "signature", "manifest"],
)
def test_a_bundle_that_was_changed_is_not_held(bundle, change):
    assert failed(verify_anything(changed(bundle, change)).checks)


def test_a_bundle_signed_by_somebody_else_holds_the_same_records_and_says_by_whom(run, tmp_path, bundle):
    export(run, tmp_path / "other.zip", "auditor", SigningKey.generate())
    first, second = (verify_anything(path).checks[0].said for path in (bundle, tmp_path / "other.zip"))
    assert KEY.public.fingerprint() in first
    assert KEY.public.fingerprint() not in second


def outside(contents):
    tree = json.loads(contents[MANIFEST])
    name = "../outside"
    tree["files"][name] = tree["files"].pop("rounds.jsonl")
    contents[MANIFEST] = json.dumps(tree).encode()
    contents[name] = contents.pop("rounds.jsonl")


@pytest.mark.parametrize(
    "change",
    [
        outside,
        lambda contents: contents.pop(MANIFEST),
        lambda contents: contents.update({MANIFEST: b"[]"}),
        lambda contents: contents.update({MANIFEST: b"{}"}),
        lambda contents: contents.update({"MANIFEST.sig": b"xx"}),
    ],
)
def test_what_is_no_bundle_is_refused(bundle, tmp_path, change):
    with pytest.raises(PrivacyError):
        verify_anything(changed(bundle, change))
    assert not (tmp_path / "outside").exists()


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"no archive")
    with pytest.raises(PrivacyError, match="is no bundle"):
        verify_anything(tmp_path / "x.zip")


def test_the_commands(fedglm, run, tmp_path):
    out = tmp_path / "b.zip"
    said = fedglm(
        "audit", "export", run, "--role", "regulator", "--out", out, "--key", run / "nodes/a/custody/site.key"
    )
    assert (said.code, "for the role regulator, signed" in said.out) == (0, True)
    assert fedglm("audit", "verify", out).code == 0
    assert "take regulator, auditor, public" in fedglm("audit", "export", run, "--role", "boss").line()
    assert "holds no key to sign with" in fedglm("audit", "export", run, "--out", out).line()
    proof = tmp_path / "proof.json"
    proof.write_text(fedglm("audit", "prove", run / "nodes" / "a", "--entry", "3").out)
    assert "verified" in fedglm("audit", "verify", proof).out
    tree = json.loads(proof.read_text())
    proof.write_text(json.dumps({**tree, "entry": tree["entry"].replace("plan", "plam")}))
    assert fedglm("audit", "verify", proof).code == 1
    assert "one of them" in fedglm("audit", "prove", run / "nodes" / "a").line()


# --- proofs


def test_each_entry_and_each_beginning_is_proved(run):
    path = run / "nodes" / "a" / "custody" / "log.sqlite"
    size = prove_entry(path, 1)["checkpoint"]["size"]
    for number in range(1, size + 1):
        assert check_proof(prove_entry(path, number)).held
        assert check_proof(prove_growth(path, number)).held
    for number in (0, size + 1):
        with pytest.raises(PrivacyError):
            prove_entry(path, number)
        with pytest.raises(PrivacyError):
            prove_growth(path, number)


@pytest.mark.parametrize("name", ["number", "entry", "path", "log", "key", "checkpoint"])
def test_a_proof_that_was_changed_proves_nothing(run, name):
    proof = prove_entry(run / "nodes" / "a" / "custody" / "log.sqlite", 4)
    others = {
        "number": 5,
        "entry": proof["entry"].replace("release", "refused"),
        "path": proof["path"][::-1],
        "log": "0" * 64,
        "key": SigningKey.generate().public.hex,
        "checkpoint": {**proof["checkpoint"], "size": proof["checkpoint"]["size"] + 1},
    }
    assert check_proof({**proof, name: others[name]}).held is False


@pytest.mark.parametrize("proof", [None, [], {}, {"format": "fedglm-proof/1"}, {"format": "x"}])
def test_what_is_no_proof_is_refused(proof):
    with pytest.raises(PrivacyError, match="no proof"):
        check_proof(proof)
