"""A policy's file and its signature: `policy.toml`, and beside it `policy.toml.sig`.

The signature is Ed25519 over the exact bytes, in hexadecimal. Without a valid one the file is not even parsed.
"""

from pathlib import Path

from fedglm.core.files import write_atomically
from fedglm.core.untrusted_files import read_regular
from fedglm.privacy.errors import PolicyError
from fedglm.privacy.keys.signing import PublicKey, SigningKey
from fedglm.privacy.policy.policy import Policy

MAX_BYTES = 65536
"""Maximum size of a policy file."""

_CONTEXT = "fedglm/policy/1"


def sign_policy(path: Path, key: SigningKey) -> Policy:
    """Sign the policy file at `path`, byte for byte, into the file of its name with `.sig` after it.

    Raises:
        PolicyError: The file cannot be read or is no policy; nothing is signed.
        StorageError: The signature cannot be written.
    """
    content = _read(path, "write a policy there")
    policy = _parse(content, path)
    write_atomically(_signature_path(path), key.sign(_CONTEXT, content).hex() + "\n")
    return policy


def load_policy(path: Path, public_key: PublicKey) -> Policy:
    """Load the policy at `path` if the owner of `public_key` signed it.

    Raises:
        PolicyError: A file is missing or too long, the signature of these bytes is not by this key, or the file is no
            policy.
    """
    content = _read(path, "without a policy nothing leaves")
    signature = _read(_signature_path(path), "sign the policy with the site's key")
    try:
        raw = bytes.fromhex(signature.decode("ascii"))
    except ValueError:
        raw = b""
    if signature != raw.hex().encode() + b"\n" or not public_key.verify(_CONTEXT, content, raw):
        raise PolicyError(
            f"{path} does not carry the signature of the site's key {public_key.fingerprint()}: somebody changed it "
            f"after it was signed, or signed with another key; read it through, then sign it again"
        )
    return _parse(content, path)


def _signature_path(path: Path) -> Path:
    return path.with_name(path.name + ".sig")


def _read(path: Path, remedy: str) -> bytes:
    try:
        return read_regular(path, MAX_BYTES)
    except OSError as exc:
        raise PolicyError(f"cannot read {path}: {exc.strerror}; {remedy}") from exc


def _parse(content: bytes, path: Path) -> Policy:
    try:
        text = content.decode()
    except UnicodeDecodeError as exc:
        raise PolicyError(f"{path} is not UTF-8: {exc.reason} at byte {exc.start}") from exc
    return Policy.from_toml(text, origin=str(path))
