"""Proofs about a log that need none of its other entries: this entry is in it; it once was the beginning of this log.

A proof is JSON. It carries the owner's newest checkpoint, and for an entry its text. Whoever knows the owner's key can
check it with `check_proof` alone.
"""

import itertools
from pathlib import Path
from typing import Any

from fedglm.audit.records.checks import Check
from fedglm.audit.records.log_records import LogRecord, read_log
from fedglm.audit.records.snapshot import snapshot
from fedglm.privacy.errors import LogError, PrivacyError
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.log.merkle import (
    consistency_proof,
    inclusion_proof,
    is_consistent,
    leaf_hash,
    root_by_inclusion,
)
from fedglm.privacy.log.tree_head import SignedTreeHead

_FORMAT = "fedglm-proof/1"
_HEX = 64
_SOUND = ("log", "signature")


def prove_entry(path: Path, number: int) -> dict[str, Any]:
    """That an entry is in a log.

    Args:
        path: Of the log's file.
        number: Of the entry, from 1.

    Raises:
        LogError: The log is damaged.
        PrivacyError: There is no such entry.
    """
    with snapshot(path) as copy:
        log, signed = sound_log(copy, path)
        if not 1 <= number <= log.size:
            raise PrivacyError(f"{path} has {log.size} entries, and no entry {number}")
        text = next(itertools.islice(log.texts(), number - 1, None))
    own = {"kind": "inclusion", "number": number, "entry": text.decode()}
    return _proof(log, signed, own, inclusion_proof(log.scan.leaves, number - 1))


def prove_growth(path: Path, size: int) -> dict[str, Any]:
    """That the first `size` entries of a log are still its first; raises as `prove_entry`."""
    with snapshot(path) as copy:
        log, signed = sound_log(copy, path)
    if not 1 <= size <= log.size:
        raise PrivacyError(f"{path} has {log.size} entries: it never stood at {size}")
    own = {"kind": "consistency", "old_size": size, "old_root": log.root(size)}
    return _proof(log, signed, own, consistency_proof(log.scan.leaves, size))


def check_proof(proof: object) -> Check:
    """Whether a stranger's proof proves what it says.

    Raises:
        PrivacyError: It is no proof.
    """
    try:
        # The owner's name is for people: the key is what says whose the log is.
        if not isinstance(proof, dict) or proof["format"] != _FORMAT or type(proof["owner"]) is not str:
            raise ValueError
        signed, key = SignedTreeHead.from_fields(proof["log"], proof["checkpoint"]), PublicKey.from_hex(proof["key"])
        steps = [_hash(step) for step in proof["path"]]
        root = bytes.fromhex(signed.root)
        if proof["kind"] == "inclusion":
            number, leaf = _whole(proof["number"]), leaf_hash(str(proof["entry"]).encode())
            good = root_by_inclusion(leaf, number - 1, signed.size, steps) == root
            said = f"entry {number} is one of the {signed.size} that {key.fingerprint()} signed"
        elif proof["kind"] == "consistency":
            size, old = _whole(proof["old_size"]), _hash(proof["old_root"])
            good = is_consistent(size, old, signed.size, root, steps)
            said = f"the first {size} entries, of root {old.hex()[:16]}, begin {signed.size}, by {key.fingerprint()}"
        else:
            raise ValueError
    except (AttributeError, KeyError, ValueError, TypeError) as exc:
        raise PrivacyError("that is no proof about a log") from exc
    if not signed.is_by(key):
        return Check(subject="proof", name=proof["kind"], held=False, said="the checkpoint is not signed by the key")
    if not good:
        return Check(subject="proof", name=proof["kind"], held=False, said="the path does not lead to the signed root")
    return Check(subject="proof", name=proof["kind"], held=True, said=said)


def proof_key(proof: Any) -> PublicKey:
    """The key that signed the checkpoint of a proof, which `check_proof` has looked at."""
    return PublicKey.from_hex(proof["key"])


def sound_log(copy: Path, path: Path) -> tuple[LogRecord, SignedTreeHead]:
    """A log whose chain holds and whose owner has signed all of it, and that signature.

    What the owner's keys vouch for is left to whoever verifies: it changes nothing of what the newest one signed.

    Args:
        copy: What is read.
        path: What errors name.

    Raises:
        LogError: It is no such log.
    """
    log, checks = read_log(copy, "site", path.parent.name)
    for check in checks:
        if check.name in _SOUND and check.held is False:
            raise LogError(f"{path}: {check.said.replace(str(copy), str(path))}")
    if log is None or log.checkpoint is None:
        raise LogError(f"{path}: it is no signed log")
    return log, log.checkpoint


def _proof(log: LogRecord, signed: SignedTreeHead, own: dict[str, Any], path: list[bytes]) -> dict[str, Any]:
    whole = {"format": _FORMAT, "log": log.origin, "owner": log.subject, "key": log.keys[-1].hex}
    return {**whole, **own, "path": [step.hex() for step in path], "checkpoint": signed.to_fields()}


def _whole(number: object) -> int:
    if type(number) is not int:
        raise ValueError
    return number


def _hash(text: object) -> bytes:
    if not isinstance(text, str) or len(text) != _HEX:
        raise ValueError
    return bytes.fromhex(text)
