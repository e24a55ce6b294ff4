"""The light release in a run's folder against the server's log: what is changed, missing, older or foreign is found."""

import json
import random
import shutil
import subprocess
import sys
import zipfile

import pytest
from audited_run import Chain
from custodies import SERVER
from light_federation import Federation, Maker
from light_releases import FACTS, make_small_model, read_files, rehash, write, write_files

from fedglm.audit.bundle.contents import ROLES
from fedglm.audit.bundle.export import export_bundle
from fedglm.audit.records.checks import Verdict, select_failed
from fedglm.audit.report.facts import read_facts
from fedglm.audit.report.items import assess_items
from fedglm.audit.verify.verification import verify
from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.keys.signing import SigningKey

pytestmark = pytest.mark.usefixtures("unsynced")

NAME = "light release"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one server: the first made releases 1 and 2, the second none, and handed out the first's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        federation = Federation(tmp_path_factory.mktemp("light"))
        first = federation.run("first", maker=Maker(federation.folder / "first", most=2), light_every=1, rounds=3)
        return first, federation.run("second", maker=False)


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the first run, to be changed."""
    shutil.copytree(runs[0], tmp_path / "run")
    return tmp_path / "run"


def check_of(path):
    (check,) = [check for check in verify(path).checks if check.name == NAME]
    return check


def replace_release(run, version, *, key=SERVER):
    """Put another release in the run's folder."""
    write(
        run / "light",
        model=make_small_model(),
        key=key,
        facts=FACTS.model_copy(update={"run": {} if version is None else {"version": version}}),
    )


def test_what_nobody_touched_is_whole_and_the_check_says_who_holds_it(runs):
    verification = verify(runs[0])
    assert verification.verdict is Verdict.WHOLE
    check = check_of(runs[0])
    assert check.passed
    size = sum(map(len, read_files(runs[0] / "light").values()))
    assert f"version 2, {size:,} bytes, signed by the server" in check.detail
    assert "2 of 2 sites say that they hold it" in check.detail


def test_a_run_without_releases_has_no_such_check_whatever_sites_hold_of_an_earlier_one(runs):
    verification = verify(runs[1])
    assert verification.verdict is Verdict.WHOLE
    assert [check for check in verification.checks if check.name == NAME] == []


@pytest.mark.parametrize("draws", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_no_changed_byte_passes(run, draws):
    dice = random.Random(7)  # noqa: S311 - a test's choice
    files = read_files(run / "light")
    for name, content in files.items():
        for at in {0, len(content) - 1, *(dice.randrange(len(content)) for _ in range(draws))}:
            changed = bytearray(content)
            changed[at] ^= 1 << dice.randrange(8)
            write_files(run / "light", files | {name: bytes(changed)})
            assert check_of(run).passed is False, (name, at)
        for cut in (content[:-1], content + b"\0", b""):
            write_files(run / "light", files | {name: cut})
            assert check_of(run).passed is False, name
    write_files(run / "light", files)
    assert check_of(run).passed


def test_what_is_missing_leaves_the_run_open(run):
    files = read_files(run / "light")
    for name in files:
        write_files(run / "light", {other: content for other, content in files.items() if other != name})
        check = check_of(run)
        assert check.passed is not True, name
        if name != "manifest.sig":
            assert (check.passed, check.missing) == (None, True), name
            assert verify(run).verdict is Verdict.OPEN
    shutil.rmtree(run / "light")
    check = check_of(run)
    assert (check.passed, check.missing) == (None, True)
    assert "release 2 of entry" in check.detail


@pytest.mark.parametrize(
    ("version", "found"),
    [(1, "release 2 of entry"), (2, "another one"), (3, "another one"), (None, "of no version")],
)
def test_another_release_of_the_server_s_own_is_found(run, version, found):
    replace_release(run, version)
    if version == 2:  # made again with other facts
        write(
            run / "light",
            model=make_small_model(),
            key=SERVER,
            facts=FACTS.model_copy(update={"run": {"version": 2}, "name": "another"}),
        )
    check = check_of(run)
    assert check.passed is False
    assert found in check.detail


def test_a_foreign_release_is_found_whoever_signs_it(run):
    stranger = SigningKey.generate()
    replace_release(run, 2, key=stranger)
    assert "which is not the server" in check_of(run).detail
    replace_release(run, 2, key=None)
    assert "not signed" in check_of(run).detail
    write_files(run / "light", rehash(read_files(run / "light") | {"README.md": b"other words"}, key=stranger))
    assert check_of(run).passed is False
    assert verify(run).verdict is Verdict.WRONG


def test_what_no_release_has_is_found(run):
    (run / "light" / "run.sh").write_text("#!/bin/sh")
    assert "'run.sh' is not in its manifest" in check_of(run).detail
    (run / "light" / "run.sh").unlink()
    (run / "light" / "README.md").unlink()
    (run / "light" / "README.md").symlink_to("/etc/passwd")
    assert "'README.md' in it is a link" in check_of(run).detail
    shutil.rmtree(run / "light")
    (run / "light").symlink_to(run.parent)
    assert "a link" in check_of(run).detail


def test_a_release_that_the_log_does_not_show_is_found(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs[1], run)
    shutil.copytree(runs[0] / "light", run / "light")
    check = check_of(run)
    assert check.passed is False
    assert "the log shows no release last" in check.detail


def edit_log(run, kind, **changes):
    """Change the last entry of a kind as the server itself can, who signs its log anew."""
    chain = Chain(run / "audit" / "log.sqlite")
    at = max(number for number, text in enumerate(chain.texts) if json.loads(text)["kind"] == kind)
    chain.texts[at] = canonical_json(json.loads(chain.texts[at]) | changes).decode()
    chain.write(chain=True, key=SERVER)


@pytest.mark.parametrize(
    ("kind", "changes", "found"),
    [
        ("handed", {"manifest": "f" * 64}, "holds a release 2 that the log does not show"),
        ("handed", {"version": 7}, "holds a release 7 that the log does not show"),
        ("light", {"version": 1, "manifest": "f" * 64, "bytes": 1}, "release 1 follows release 2"),
        ("light", {"version": 3, "manifest": None, "bytes": None}, "or neither"),
    ],
)
def test_a_log_that_contradicts_itself_is_found(run, kind, changes, found):
    edit_log(run, kind, **changes)
    check = check_of(run)
    assert check.passed is False
    assert found in check.detail


@pytest.mark.parametrize("change", [{"bytes": 7}, {"version": 5}])
def test_a_release_of_another_version_or_size_than_the_log_shows_is_found(run, change):
    """Its last entry about a release is that of round 2: none was made after it."""
    chain = Chain(run / "audit" / "log.sqlite")
    entries = [json.loads(text) for text in chain.texts]
    at = max(n for n, entry in enumerate(entries) if entry["kind"] == "light" and entry["manifest"])
    changed = [
        entry | change
        if n == at
        or (entry["kind"] == "handed" and entry["manifest"] == entries[at]["manifest"] and "version" in change)
        else entry
        for n, entry in enumerate(entries)
    ]
    chain.texts = [canonical_json(entry).decode() for entry in changed]
    chain.write(chain=True, key=SERVER)
    assert "another version or size" in check_of(run).detail


def test_a_run_under_way_may_have_written_the_next_release_before_its_entry(run):
    chain = Chain(run / "audit" / "log.sqlite")
    kinds = [json.loads(text)["kind"] for text in chain.texts]
    chain.texts = chain.texts[: kinds.index("finished")]
    chain.write(chain=True, key=SERVER)
    assert check_of(run).passed
    replace_release(run, 3)
    check = check_of(run)
    assert (check.passed, check.missing) == (None, False)
    replace_release(run, 1)
    assert check_of(run).passed is False


def test_a_bundle_holds_the_manifest_and_its_signature_and_is_whole_with_them_alone(run, tmp_path):
    bundle = tmp_path / "bundle.zip"
    for role in ROLES:
        if role != "public":
            names = export_bundle(run, bundle, role, SERVER)
            assert {name for name in names if name.startswith("light/")} == {
                "light/manifest.json",
                "light/manifest.sig",
            }
            assert verify(bundle).verdict is Verdict.WHOLE
    assert "a bundle holds its manifest" in check_of(bundle).detail
    (run / "light" / "manifest.json").unlink()
    export_bundle(run, bundle, "auditor", SERVER)
    assert verify(bundle).verdict is Verdict.OPEN
    shutil.rmtree(run / "light")
    replace_release(run, 9)
    export_bundle(run, bundle, "auditor", SERVER)
    assert verify(bundle).verdict is Verdict.WRONG


def test_a_bundle_with_the_model_itself_is_none(run, tmp_path):
    export_bundle(run, tmp_path / "bundle.zip", "auditor", SERVER)
    with zipfile.ZipFile(tmp_path / "bundle.zip", "a") as archive:
        archive.write(run / "light" / "weights.safetensors", "light/weights.safetensors")
    with pytest.raises(Exception, match="bundle"):
        verify(tmp_path / "bundle.zip")


def test_the_report_mentions_it(run):
    (integrity,) = [item for item in assess_items(read_facts(run)) if item.number == 11]
    assert any(line.startswith("Light release: version 2, ") for line in integrity.evidence)
    replace_release(run, 3, key=SigningKey.generate())
    (integrity,) = [item for item in assess_items(read_facts(run)) if item.number == 11]
    assert integrity.status == "not held"
    assert any(line.startswith("server, light release: light/: ") for line in integrity.evidence)


def test_it_is_verified_by_the_base_install_alone(run):
    code = f"""
import sys
heavy = ("torch", "transformers", "flwr", "onnxruntime", "onnx", "safetensors", "tokenizers", "numba", "sklearn")
class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in heavy:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from pathlib import Path
from fedglm.audit.verify.verification import verify
print(verify(Path({str(run)!r})).verdict.value)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


def test_others_logs_are_not_held_to_it(run):
    """A site held to the server's records: what lies beside the server's log is not asked for."""
    shutil.rmtree(run / "light")
    verification = verify(run / "nodes" / "a", server=run)
    assert select_failed(verification.checks) == []
    assert not any(check.name == NAME for check in verification.checks)
