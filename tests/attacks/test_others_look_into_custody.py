"""Another user of a site's machine looks into the site's folders: policy, records, refusals, and the node's state."""

import stat
from pathlib import Path

import pytest
from custodies import OPEN, custody
from site_folders import make_project, make_site

from fedglm.audit.bundle.export import export_bundle
from fedglm.client.site.site_keys import make_keys
from fedglm.client.supernode.worker_link import WorkerRequest, ask
from fedglm.privacy.custody.store import Custody, initialize
from fedglm.privacy.errors import PrivacyError, Refusal
from fedglm.privacy.policy.policy import Policy

pytestmark = pytest.mark.usefixtures("unsynced")


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_custody_folder_is_its_owner_s_alone(tmp_path):
    initialize(tmp_path / "site" / "custody", Policy(data_set="notes", **OPEN))
    assert rights(tmp_path / "site" / "custody") == 0o700


def test_also_where_keys_are_made_first(tmp_path):
    make_keys(tmp_path, "berlin", tmp_path / "flower.key", tmp_path / "custody" / "site.key")
    assert rights(tmp_path / "custody") == 0o700


def test_also_that_of_a_site_from_its_kit(tmp_path):
    site = make_site(tmp_path, make_project(tmp_path))
    assert rights(site.custody_folder) == 0o700


def test_what_is_in_it_and_what_is_exported_of_it_is_its_owner_s_alone(tmp_path):
    site = custody(tmp_path / "a" / "custody")
    with pytest.raises(Refusal), site.logged("run", 1):
        raise Refusal("codecs", "no")
    files = [path for path in (tmp_path / "a" / "custody").iterdir() if not path.name.startswith("policy.toml")]
    assert {path.name for path in files} == {"site.key", "salt", "ledger.sqlite", "log.sqlite", "refusals.jsonl"}
    assert {rights(path) for path in files} == {0o600}
    export_bundle(tmp_path / "a", tmp_path / "b.zip", "auditor", site.key)
    assert rights(tmp_path / "b.zip") == 0o600
    assert rights(tmp_path / "a" / "custody") == 0o700


def test_one_that_an_earlier_version_left_open_is_closed(tmp_path):
    custody(tmp_path / "custody")
    (tmp_path / "custody").chmod(0o755)
    custody(tmp_path / "custody")
    assert rights(tmp_path / "custody") == 0o700


def test_one_that_cannot_be_closed_is_not_used(tmp_path, monkeypatch):
    custody(tmp_path / "custody")
    (tmp_path / "custody").chmod(0o755)

    def refuse(*_arguments, **_options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(PrivacyError, match=r"its owner runs chmod 700 .*custody") as caught:
        Custody.open(tmp_path / "custody", [[b"one"]], unit="record")
    assert "\n" not in str(caught.value)


def test_a_state_folder_that_was_left_open_is_closed_before_a_worker_writes_to_it(tmp_path, monkeypatch):
    site = make_site(tmp_path, make_project(tmp_path))
    site.state.mkdir(exist_ok=True)
    site.state.chmod(0o755)

    def started(*_arguments, **_options):
        raise InterruptedError

    monkeypatch.setattr("subprocess.Popen", started)
    with pytest.raises(InterruptedError):
        ask(site.folder, WorkerRequest("query", "0", b""))
    assert rights(site.state) == 0o700
