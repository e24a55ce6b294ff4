"""Encryption at rest of a node's state: what lies on the disk, and what happens with wrong keys and changed files."""

import json
import os
import pickle

import numpy as np
import pytest

from fedglm.client.state.node_state import NodeState, PendingUpdate, StateError
from fedglm.privacy.errors import PrivacyError, SealError
from fedglm.privacy.keys.vault import MAGIC, Vault

SIZE = 1000
CANARY = b"canary of a patient"
PASSPHRASE = "correct horse battery"  # noqa: S105


@pytest.fixture
def vault(tmp_path):
    return Vault.create(tmp_path / "state.key")


def state(vault):
    values = np.arange(SIZE, dtype=np.float32)
    pending = PendingUpdate(
        round=3, base_sha256="0" * 64, attempt="1" * 32, blob=CANARY * 10, residual=values + 1, rate=0.5
    )
    return NodeState(
        run="run", version=2, base=values, residual=values * 2, residual_round=2, pending=pending, vault=vault
    )


def whole(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())


def test_what_is_sealed_is_opened_under_its_name_alone(vault):
    sealed = vault.seal("a", CANARY)
    assert vault.open("a", sealed) == CANARY
    assert CANARY not in sealed
    assert vault.seal("a", CANARY) != sealed
    with pytest.raises(SealError, match="sealed by another key, or was changed"):
        vault.open("b", sealed)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(SealError):
            vault.open("a", bytes(changed))
    for length in range(0, len(sealed), 7):
        with pytest.raises(SealError):
            vault.open("a", sealed[:length])


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_the_key_lies_in_a_file_of_its_owner(tmp_path, monkeypatch, passphrase):
    path = tmp_path / "state.key"
    made = Vault.create(path, passphrase)
    assert path.stat().st_mode & 0o777 == 0o600
    if passphrase is not None:
        assert "key" not in json.loads(path.read_text())
        with pytest.raises(PrivacyError, match="locked with a passphrase"):
            Vault.load(path)
        monkeypatch.setenv("FEDGLM_PASSPHRASE", "another passphrase")
        with pytest.raises(PrivacyError, match="the passphrase does not open the key"):
            Vault.load(path)
        monkeypatch.setenv("FEDGLM_PASSPHRASE", passphrase)
    assert Vault.load(path).open("a", made.seal("a", CANARY)) == CANARY
    with pytest.raises(PrivacyError, match="is there already"):
        Vault.create(path)


def test_an_error_about_the_passphrase_s_file_is_not_taken_for_a_wrong_passphrase(tmp_path, monkeypatch):
    """Whatever the message says: the file's name stands in it."""
    path, secret = tmp_path / "state.key", tmp_path / "sealed by another key"
    Vault.create(path, PASSPHRASE)
    secret.write_text(PASSPHRASE)
    secret.chmod(0o644)
    monkeypatch.setenv("FEDGLM_PASSPHRASE_FILE", str(secret))
    with pytest.raises(PrivacyError, match="others than its owner"):
        Vault.load(path)
    secret.chmod(0o600)
    Vault.load(path)


def test_a_key_shows_nowhere(vault):
    assert repr(vault) == "Vault(...)"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(vault)


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"format": "other"}', '{"format": "fedglm-state-key/1", "key": "eA=="}']
)
def test_a_file_that_holds_no_key(tmp_path, content):
    path = tmp_path / "state.key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(PrivacyError, match="holds no key for a node's state"):
        Vault.load(path)


@pytest.mark.usefixtures("vault")
def test_a_key_that_others_may_read_is_not_used(tmp_path):
    (tmp_path / "state.key").chmod(0o644)
    with pytest.raises(PrivacyError, match="others than its owner"):
        Vault.load(tmp_path / "state.key")


def test_a_short_passphrase_keeps_nobody_out(tmp_path):
    with pytest.raises(PrivacyError, match="at least 12 characters"):
        Vault.create(tmp_path / "state.key", "short")


# --- the state


def test_a_node_s_state_is_encrypted_and_comes_back(tmp_path, vault):
    folder = tmp_path / "node"
    state(vault).save(folder)
    content = whole(folder)
    assert CANARY not in content
    assert np.arange(SIZE, dtype="<f4").tobytes() not in content
    assert all(path.read_bytes().startswith(MAGIC) for path in folder.iterdir())
    again = NodeState.load(folder, SIZE, run="run", vault=vault)
    assert (again.version, again.pending.blob, again.pending.round) == (2, CANARY * 10, 3)
    np.testing.assert_array_equal(again.residual, 2 * np.arange(SIZE))


def test_a_state_that_was_not_encrypted_is_from_now_on(tmp_path, vault):
    folder = tmp_path / "node"
    state(None).save(folder)
    assert CANARY in whole(folder)
    found = NodeState.load(folder, SIZE, run="run", vault=vault)
    found.save(folder)
    assert CANARY not in whole(folder)
    assert np.arange(SIZE, dtype="<f4").tobytes() not in whole(folder)


@pytest.mark.parametrize("key", [None, "another"])
def test_without_the_key_there_is_no_state(tmp_path, vault, key):
    folder = tmp_path / "node"
    state(vault).save(folder)
    other = None if key is None else Vault(os.urandom(32))
    with pytest.raises(StateError, match="it is encrypted" if key is None else "sealed by another key"):
        NodeState.load(folder, SIZE, run="run", vault=other)


def test_a_file_in_another_s_place_is_noticed(tmp_path, vault):
    folder = tmp_path / "node"
    state(vault).save(folder)
    (base,), (residual,) = folder.glob("base-*"), folder.glob("residual-*")
    base.write_bytes(residual.read_bytes())
    with pytest.raises(StateError, match="sealed by another key, or was changed"):
        NodeState.load(folder, SIZE, run="run", vault=vault)
