"""Bundles and proofs: a bundle contains what its role may read and nothing else, and every change is detected."""

import io
import json
import shutil
import zipfile

import pytest
from audited_run import Chain
from custodies import SERVER
from killed_writers import kill_writer_of
from site_folders import content_of

from fedglm.audit.bundle.contents import MANIFEST, ROLES
from fedglm.audit.bundle.export import export_bundle
from fedglm.audit.empirical import results
from fedglm.audit.records.checks import Verdict, select_failed
from fedglm.audit.records.proofs import check_proof, prove_consistency, prove_inclusion
from fedglm.audit.verify.verification import verify
from fedglm.privacy.errors import LogError, PrivacyError
from fedglm.privacy.keys.signing import SigningKey

KEY = SERVER
"""The run's own."""


@pytest.fixture(scope="module")
def run(run):
    (run / "nodes" / "a" / "custody" / "refusals.jsonl").write_text("{}\n")
    (run / "audit" / "report.html").write_text("<html></html>")
    return run


@pytest.fixture
def bundle(run, tmp_path):
    export_bundle(run, tmp_path / "bundle.zip", "auditor", KEY)
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
    verification = verify(bundle)
    assert verification.verdict is Verdict.WHOLE
    assert {check.subject for check in verification.checks} == {"bundle", "server", "a", "b", "c"}
    assert len(verification.sites) == 3


@pytest.mark.parametrize("role", ROLES)
def test_a_role_reads_what_it_may_and_no_secret_is_in_any(run, tmp_path, role):
    names = export_bundle(run, tmp_path / "bundle.zip", role, KEY)
    assert ("nodes/a/custody/refusals.jsonl" in names) == (role == "regulator")
    assert ("nodes/a/custody/ledger.sqlite" in names) == (role != "public")
    assert "audit/report.html" in names
    assert not [name for name in names if name.endswith((".key", "salt", ".bin", "state.json", ".safetensors"))]
    content = (tmp_path / "bundle.zip").read_bytes()
    for site in "abc":
        custody = run / "nodes" / site / "custody"
        assert (custody / "site.key").read_bytes() not in content
        assert (custody / "salt").read_bytes() not in content
    verification = verify(tmp_path / "bundle.zip")
    assert (verification.verdict, verification.passed) == (Verdict.OPEN if role == "public" else Verdict.WHOLE, True)


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
        lambda contents: contents.update({"nodes/z/custody/policy.toml": b"more"}),
        lambda contents: contents.update({"nodes/a/custody/log.jsonl": b"{}\n"}),
        lambda contents: contents.update({"MANIFEST.sig": b"00" * 64}),
        lambda contents: contents.update({MANIFEST: contents[MANIFEST].replace(b"auditor", b"regulator")}),
    ],
    ids=["edited", "dropped", "added", "lines", "signature", "manifest"],
)
def test_a_bundle_that_was_changed_is_not_held(bundle, change):
    assert select_failed(verify(changed(bundle, change)).checks)


def test_a_bundle_signed_by_somebody_else_holds_the_same_records_and_says_by_whom(run, tmp_path, bundle):
    other = SigningKey.generate()
    export_bundle(run, tmp_path / "other.zip", "auditor", other)
    first, second = verify(bundle), verify(tmp_path / "other.zip")
    assert KEY.public.fingerprint() in first.checks[0].detail
    assert other.public.fingerprint() in second.checks[0].detail
    assert (first.verdict, second.verdict) == (Verdict.WHOLE, Verdict.OPEN)
    # Whoever knows the key knows who vouches for what no log shows.
    known = verify(tmp_path / "other.zip", keys=[other.public, KEY.public])
    assert known.verdict is Verdict.WHOLE
    assert verify(tmp_path / "other.zip", keys=[SigningKey.generate().public]).verdict is Verdict.WRONG


def test_the_files_of_empirical_audits_are_in_it_by_the_names_that_they_are_written_by():
    assert {f"audit/{results.CANARIES}", f"audit/{results.ATTACK}"} <= set(ROLES["auditor"])


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
        verify(changed(bundle, change))
    assert not (tmp_path / "outside").exists()


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"no archive")
    with pytest.raises(PrivacyError, match="is no bundle"):
        verify(tmp_path / "x.zip")


def test_the_commands(fedglm, run, tmp_path):
    out = tmp_path / "b.zip"
    result = fedglm("audit", "export", run / "nodes" / "a", "--role", "regulator", "--out", out)
    assert (result.code, "for the role regulator, signed" in result.out) == (0, True)
    assert "verified alone" in fedglm("audit", "verify", out).out
    fedglm("audit", "export", run, "--out", out, "--key", run / "nodes/a/custody/site.key")
    result = fedglm("audit", "verify", out)  # which a site signed, and it is not a site's
    assert (result.code, "open, not whole" in result.out) == (3, True)
    assert "take regulator, auditor, public" in fedglm("audit", "export", run, "--role", "boss").line()
    assert "holds no key to sign with" in fedglm("audit", "export", run, "--out", out).line()
    proof = tmp_path / "proof.json"
    proof.write_text(fedglm("audit", "prove", run / "nodes" / "a", "--entry", "3").out)
    assert "verified" in fedglm("audit", "verify", proof).out
    tree = json.loads(proof.read_text())
    proof.write_text(json.dumps({**tree, "entry": tree["entry"].replace("plan", "plam")}))
    assert fedglm("audit", "verify", proof).code == 1
    assert "one of them" in fedglm("audit", "prove", run / "nodes" / "a").line()


def test_a_key_that_is_not_there_is_named(fedglm, run, tmp_path):
    line = fedglm("audit", "export", run, "--key", tmp_path / "nope", "--out", tmp_path / "b.zip").line()
    assert f"--key {tmp_path / 'nope'}: there is no such file" in line


# --- a site's records against a bundle of the server's


@pytest.fixture
def site(run):
    return run / "nodes" / "a"


def test_a_site_is_held_to_the_server_in_a_bundle(bundle, run, site):
    verification, plain = verify(site, server=bundle), verify(site, server=run)
    assert verification.passed
    assert [(check.subject, check.name) for check in verification.checks[:2]] == [
        ("server's bundle", "files"),
        ("server's bundle", "signer"),
    ]
    own = [
        check for check in verification.checks[2:] if check.name != "lines"
    ]  # which stand beside a log in a bundle alone
    assert own == plain.checks
    assert [log.subject for log in verification.sites] == ["a"]


def test_a_site_s_bundle_is_held_to_the_server_in_a_bundle(bundle, site, tmp_path):
    export_bundle(site, tmp_path / "site.zip", "auditor", KEY)
    for server in (bundle, site.parent.parent):
        verification = verify(tmp_path / "site.zip", server=server)
        assert verification.passed
        assert {"bundle", "server", "a"} <= {check.subject for check in verification.checks}


def test_a_site_s_bundle_stands_in_for_its_folder(run, tmp_path):
    export_bundle(run / "nodes" / "a", tmp_path / "a.zip", "auditor", KEY)
    server = tmp_path / "server"
    shutil.copytree(run / "audit", server / "audit")
    shutil.copy(run / "rounds.jsonl", server)
    verification = verify(server, sites=[tmp_path / "a.zip"])
    assert [log.subject for log in verification.sites] == ["a"]
    assert verification.passed


def test_a_tampered_bundle_of_the_server_is_not_held(bundle, site, fedglm):
    changed(bundle, lambda contents: contents.update({"rounds.jsonl": contents["rounds.jsonl"] + b" "}))
    wrong = select_failed(verify(site, server=bundle).checks)
    assert "server's bundle" in {check.subject for check in wrong}
    assert fedglm("audit", "verify", site, "--server", bundle).code == 1


def test_a_site_that_changed_its_log_is_found_by_a_bundle_of_the_server(run, tmp_path, bundle):
    site = tmp_path / "a"
    shutil.copytree(run / "nodes" / "a", site)
    chain = Chain(site / "custody" / "log.sqlite")
    chain.texts = chain.texts[:3]
    chain.write(chain=True, key=SigningKey.load(site / "custody" / "site.key"))
    assert select_failed(verify(site, server=bundle).checks)


def test_a_damaged_log_in_a_bundle_goes_by_the_bundle_s_name(bundle, site):
    changed(bundle, lambda contents: contents.update({"audit/log.sqlite": b"no database at all"}))
    wrong = select_failed(verify(site, server=bundle).checks)
    assert [check for check in wrong if f"{bundle}/audit/log.sqlite cannot be read" in check.detail]
    assert not [check for check in wrong if "fedglm-bundle-" in check.detail]


def test_a_bundle_without_the_log_that_is_asked_for_is_named(run, bundle, site, tmp_path, fedglm):
    public, own = tmp_path / "public.zip", tmp_path / "own.zip"
    export_bundle(run, public, "public", KEY)
    export_bundle(site, own, "auditor", KEY)
    for server in (public, own):
        line = fedglm("audit", "verify", site, "--server", server).line()
        assert f"{server} holds no log of a server" in line
        assert "role auditor or regulator" in line
    assert f"{public} holds no log of a site" in fedglm("audit", "verify", public, "--server", bundle).line()
    assert f"{public} holds no log of a site" in fedglm("audit", "verify", run, "--site", public).line()
    nowhere = tmp_path / "nowhere"
    assert f"{nowhere} holds no log of a site" in fedglm("audit", "verify", nowhere, "--server", bundle).line()
    (tmp_path / "none.zip").write_bytes(b"no archive")
    assert "is no bundle" in fedglm("audit", "verify", site, "--server", tmp_path / "none.zip").line()


# --- evidence that a killed writer left


@pytest.fixture
def killed(run, tmp_path):
    """A run whose site `a` was killed during a charge and an entry, and whose server during an entry of its own."""
    folder = tmp_path / "killed"
    shutil.copytree(run, folder)
    for name in ("nodes/a/custody/log.sqlite", "nodes/a/custody/ledger.sqlite", "audit/log.sqlite"):
        kill_writer_of(folder / name)
    return folder


def test_what_an_auditor_reads_stays_as_the_killed_writer_left_it(killed, tmp_path, fedglm):
    before, site = content_of(killed), killed / "nodes" / "a"
    proof = tmp_path / "proof.json"
    proof.write_text(fedglm("audit", "prove", site, "--entry", "3").out)
    assert fedglm("audit", "prove", killed, "--since", "2").code == 0
    assert fedglm("audit", "export", killed, "--out", tmp_path / "b.zip", "--key", site / "custody/site.key").code == 0
    assert "row" in fedglm("audit", "ledger", site).out
    assert fedglm("audit", "verify", killed).code == 0
    assert content_of(killed) == before
    assert fedglm("audit", "verify", proof).code == 0
    key = SigningKey.load(site / "custody" / "site.key").public.hex
    assert fedglm("audit", "verify", tmp_path / "b.zip", "--key", key).code == 0


def test_an_archive_holds_what_the_killed_writer_had_finished(killed, run, tmp_path):
    names = export_bundle(killed, tmp_path / "killed.zip", "auditor", KEY)
    assert names == export_bundle(run, tmp_path / "whole.zip", "auditor", KEY)
    with zipfile.ZipFile(tmp_path / "killed.zip") as archive, zipfile.ZipFile(tmp_path / "whole.zip") as unkilled:
        for name in ("nodes/a/custody/log.jsonl", "audit/log.jsonl"):
            assert archive.read(name) == unkilled.read(name)


def test_where_nobody_was_killed_an_archive_holds_the_file_s_own_bytes(run, bundle):
    with zipfile.ZipFile(bundle) as archive:
        for name in ("nodes/a/custody/log.sqlite", "nodes/a/custody/ledger.sqlite", "audit/log.sqlite"):
            assert archive.read(name) == (run / name).read_bytes()


def test_a_damaged_log_is_neither_exported_nor_proved(run, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(run, folder)
    log = folder / "nodes" / "a" / "custody" / "log.sqlite"
    chain = Chain(log)
    del chain.texts[-1]
    chain.write(chain=True)
    for read in (
        lambda: prove_inclusion(log, 1),
        lambda: prove_consistency(log, 1),
        lambda: export_bundle(folder, log, "auditor", KEY),
    ):
        with pytest.raises(LogError, match="entries were cut off") as caught:
            read()
        assert str(log) in str(caught.value)


# --- proofs


def test_each_entry_and_each_beginning_is_proved(run):
    path = run / "nodes" / "a" / "custody" / "log.sqlite"
    size = prove_inclusion(path, 1)["checkpoint"]["size"]
    for number in range(1, size + 1):
        assert check_proof(prove_inclusion(path, number)).passed
        assert check_proof(prove_consistency(path, number)).passed
    for number in (0, size + 1):
        with pytest.raises(PrivacyError):
            prove_inclusion(path, number)
        with pytest.raises(PrivacyError):
            prove_consistency(path, number)


@pytest.mark.parametrize("name", ["number", "entry", "path", "log", "key", "checkpoint"])
def test_a_proof_that_was_changed_proves_nothing(run, name):
    proof = prove_inclusion(run / "nodes" / "a" / "custody" / "log.sqlite", 4)
    others = {
        "number": 5,
        "entry": proof["entry"].replace("release", "refused"),
        "path": proof["path"][::-1],
        "log": "0" * 64,
        "key": SigningKey.generate().public.hex,
        "checkpoint": {**proof["checkpoint"], "size": proof["checkpoint"]["size"] + 1},
    }
    assert check_proof({**proof, name: others[name]}).passed is False


@pytest.mark.parametrize("proof", [None, [], {}, {"format": "fedglm-proof/1"}, {"format": "x"}])
def test_what_is_no_proof_is_refused(proof):
    with pytest.raises(PrivacyError, match="no proof"):
        check_proof(proof)
