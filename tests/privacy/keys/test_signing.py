import copy
import logging
import os
import pickle
import stat
import subprocess
import sys
import traceback

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fedglm.core.files import StorageError
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey, SigningKey

POLICY, PLAN = "fedglm/policy/1", "fedglm/plan/1"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys" / "site.key"


def private_file(path, content):
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def test_a_key_signs_and_its_file_gives_the_same_key(path):
    key = SigningKey.create(path)
    again = SigningKey.load(path)
    assert again.public == key.public
    assert again.sign(POLICY, b"text") == key.sign(POLICY, b"text")
    assert key.public.verify(POLICY, b"text", key.sign(POLICY, b"text"))


def test_the_signature_is_plain_ed25519_over_context_zero_byte_message():
    key = SigningKey.generate()
    signature = key.sign(POLICY, b"text")
    Ed25519PublicKey.from_public_bytes(key.public.raw).verify(signature, b"fedglm/policy/1\0text")


@pytest.mark.parametrize(
    ("context", "message"), [(PLAN, b"text"), (POLICY, b"texT"), ("fedglm/policy/11", b"text"), (POLICY, b"")]
)
def test_a_signature_counts_for_its_context_and_message_alone(context, message):
    key = SigningKey.generate()
    signature = key.sign(POLICY, b"text")
    assert not key.public.verify(context, message, signature)
    assert not SigningKey.generate().public.verify(POLICY, b"text", signature)
    assert not key.public.verify(POLICY, b"text", signature[:-1])


@pytest.mark.parametrize(
    "context", ["", "policy", "fedglm/policy", "fedglm/policy/1\0", "fedglm/policy/1\n", "fedglm//1"]
)
def test_a_context_that_could_be_mistaken_is_an_error_and_no_failed_check(context):
    key = SigningKey.generate()
    with pytest.raises(ValueError, match="looks like"):
        key.sign(context, b"text")
    with pytest.raises(ValueError, match="looks like"):
        key.public.verify(context, b"text", bytes(64))


def test_bytes_that_are_no_key_verify_nothing():
    assert not PublicKey(b"\xff" * 32).verify(POLICY, b"text", bytes(64))
    for wrong in (b"", b"x" * 31, b"x" * 33, bytearray(32), "x" * 32):
        with pytest.raises(PrivacyError, match="32 bytes"):
            PublicKey(wrong)


def test_a_public_key_travels_as_hex():
    public = SigningKey.generate().public
    assert PublicKey.from_hex(public.hex) == public
    assert str(public) == public.hex
    for wrong in ("", public.hex[:-1], "g" * 64, public.hex + "\n", "A" * 64, " " + public.hex[1:], "\u0663" * 64):
        with pytest.raises(PrivacyError, match="64 digits"):
            PublicKey.from_hex(wrong)


def test_fingerprints_are_short_and_differ():
    first, second = SigningKey.generate().public, SigningKey.generate().public
    assert len(first.fingerprint()) == 8 * 4 + 7
    assert first.fingerprint() == PublicKey.from_hex(first.hex).fingerprint() != second.fingerprint()


def test_a_new_key_file_is_for_its_owner_alone_whatever_the_umask(path):
    code = f"""
import os, pathlib
os.umask(0)
from fedglm.privacy.keys.signing import SigningKey
SigningKey.create(pathlib.Path({str(path)!r}))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_any_ed25519_tool_reads_the_file(path):
    key = SigningKey.create(path)
    private = load_pem_private_key(path.read_bytes(), None)
    assert private.public_key().public_bytes_raw() == key.public.raw


def test_a_key_is_never_replaced(path):
    SigningKey.create(path)
    before = path.read_bytes()
    with pytest.raises(PrivacyError, match="never replaced"):
        SigningKey.create(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_full_disk_leaves_no_key(path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        SigningKey.create(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("rights", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o660, 0o666, 0o444])
def test_a_key_that_others_may_use_is_refused(path, rights):
    SigningKey.create(path)
    path.chmod(rights)
    with pytest.raises(PrivacyError, match=f"rights 0{rights:o}.*chmod 600"):
        SigningKey.load(path)
    path.chmod(0o400)
    SigningKey.load(path)


def test_a_key_by_way_of_a_link_is_held_to_the_rights_of_the_file(path, tmp_path):
    SigningKey.create(path)
    link = tmp_path / "link.key"
    link.symlink_to(path)
    SigningKey.load(link)
    path.chmod(0o644)
    with pytest.raises(PrivacyError, match="others than its owner"):
        SigningKey.load(link)


def test_every_truncation_of_a_key_file_is_refused(path):
    SigningKey.create(path)
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # the last byte ends the last line and says nothing
        with pytest.raises(PrivacyError, match="holds no Ed25519 key"):
            SigningKey.load(private_file(path, whole[:length]))


def pem(private, encryption):
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(100_000),
        b"-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n",
        pem(X25519PrivateKey.generate(), NoEncryption()),
    ],
    ids=["empty", "long", "garbage", "another kind"],
)
def test_what_is_no_key_is_refused(tmp_path, content):
    with pytest.raises(PrivacyError, match="holds no Ed25519 key"):
        SigningKey.load(private_file(tmp_path / "file", content))


def test_no_file_a_folder_and_a_pipe_are_refused(tmp_path):
    with pytest.raises(PrivacyError, match="No such file"):
        SigningKey.load(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(PrivacyError, match="no plain file"):
            SigningKey.load(path)


def test_a_private_key_shows_nowhere(path, caplog):
    key = SigningKey.create(path)
    private = load_pem_private_key(path.read_bytes(), None)
    body = path.read_bytes().splitlines()[1].decode()
    secrets = [private.private_bytes_raw().hex(), repr(private.private_bytes_raw())[2:-1], body[-20:]]
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").warning("%s %r %s", key, key, {"key": key})
    said = [repr(key), str(key), f"{key}", f"{[key]}", caplog.text]
    private_file(path, path.read_bytes()[:-30])
    try:
        SigningKey.load(path)
    except PrivacyError as exc:
        said.append("".join(traceback.TracebackException.from_exception(exc, capture_locals=False).format()))
    assert len(said) == 6
    assert [secret for secret in secrets for text in said if secret in text] == []
    assert key.public.fingerprint() in repr(key)


def test_a_private_key_is_not_copied_into_other_processes():
    key = SigningKey.generate()
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled or copied"):
            way(key)
    assert pickle.loads(pickle.dumps(key.public)) == key.public  # noqa: S301
