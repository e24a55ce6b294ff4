"""Proofs about a log that need none of its other entries: RFC 6962's inclusion and consistency proofs.

A proof is JSON. It carries the owner's newest signed tree head, and for an entry its text. Whoever knows the owner's
key can check it with `check_proof` alone.
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
    compute_root_by_inclusion,
    hash_leaf,
    is_consistent,
    make_consistency_proof,
    make_inclusion_proof,
)
from fedglm.privacy.log.tree_head import SignedTreeHead

_FORMAT = "fedglm-proof/1"
_HASH_DIGITS = 64
_REQUIRED_CHECKS = ("log", "signature")


def prove_inclusion(path: Path, number: int) -> dict[str, Any]:
    """Prove that an entry is in a log.

    Args:
        path: Path of the log's file.
        number: Number of the entry, from 1.

    Returns:
        The proof, ready to be written as JSON.

    Raises:
        LogError: The log is damaged.
        PrivacyError: There is no such entry.
    """
    with snapshot(path) as copy:
        log, tree_head = read_sound_log(copy, path)
        if not 1 <= number <= log.size:
            raise PrivacyError(f"{path} has {log.size} entries, and no entry {number}")
        text = next(itertools.islice(log.read_texts(), number - 1, None))
    content = {"kind": "inclusion", "number": number, "entry": text.decode()}
    return _make_proof(log, tree_head, content, make_inclusion_proof(log.scan.leaves, number - 1))


def prove_consistency(path: Path, size: int) -> dict[str, Any]:
    """Prove that the first entries of a log are still its first.

    Args:
        path: Path of the log's file.
        size: Number of those entries, from 1.

    Returns:
        The proof, ready to be written as JSON.

    Raises:
        LogError: The log is damaged.
        PrivacyError: The log has fewer entries.
    """
    with snapshot(path) as copy:
        log, tree_head = read_sound_log(copy, path)
    if not 1 <= size <= log.size:
        raise PrivacyError(f"{path} has {log.size} entries: it never stood at {size}")
    content = {"kind": "consistency", "old_size": size, "old_root": log.compute_root(size)}
    return _make_proof(log, tree_head, content, make_consistency_proof(log.scan.leaves, size))


def check_proof(proof: object) -> Check:
    """Check a stranger's proof.

    Args:
        proof: The proof as it was read from JSON.

    Raises:
        PrivacyError: It is no proof.
    """
    try:
        # The owner's name is for people: the key is what says whose the log is.
        if not isinstance(proof, dict) or proof["format"] != _FORMAT or type(proof["owner"]) is not str:
            raise ValueError
        tree_head, key = SignedTreeHead.from_fields(proof["log"], proof["checkpoint"]), PublicKey.from_hex(proof["key"])
        steps = [_parse_hash(step) for step in proof["path"]]
        root = bytes.fromhex(tree_head.root)
        if proof["kind"] == "inclusion":
            number, leaf = _parse_integer(proof["number"]), hash_leaf(str(proof["entry"]).encode())
            proved = compute_root_by_inclusion(leaf, number - 1, tree_head.size, steps) == root
            detail = f"entry {number} is one of the {tree_head.size} that {key.fingerprint()} signed"
        elif proof["kind"] == "consistency":
            size, old = _parse_integer(proof["old_size"]), _parse_hash(proof["old_root"])
            proved = is_consistent(size, old, tree_head.size, root, steps)
            detail = (
                f"the first {size} entries, of root {old.hex()[:16]}, begin {tree_head.size}, by {key.fingerprint()}"
            )
        else:
            raise ValueError
    except (AttributeError, KeyError, ValueError, TypeError) as exc:
        raise PrivacyError("that is no proof about a log") from exc
    if not tree_head.is_by(key):
        return Check(
            subject="proof", name=proof["kind"], passed=False, detail="the checkpoint is not signed by the key"
        )
    if not proved:
        return Check(
            subject="proof", name=proof["kind"], passed=False, detail="the path does not lead to the signed root"
        )
    return Check(subject="proof", name=proof["kind"], passed=True, detail=detail)


def read_proof_key(proof: Any) -> PublicKey:
    """Return the key that signed the tree head of a proof, which `check_proof` has checked before."""
    return PublicKey.from_hex(proof["key"])


def read_sound_log(copy: Path, path: Path) -> tuple[LogRecord, SignedTreeHead]:
    """Read a log whose chain is intact and whose owner has signed all of it.

    Whether the owner's keys vouch for each other is left to whoever verifies: it changes nothing of what the newest key
    signed.

    Args:
        copy: Path of the file that is read.
        path: Path that errors name.

    Returns:
        The log, and the owner's signed tree head over all of it.

    Raises:
        LogError: The log is damaged, or not signed to its end.
    """
    log, checks = read_log(copy, "site", path.parent.name)
    for check in checks:
        if check.name in _REQUIRED_CHECKS and check.passed is False:
            raise LogError(f"{path}: {check.detail.replace(str(copy), str(path))}")
    if log is None or log.tree_head is None:
        raise LogError(f"{path}: it is no signed log")
    return log, log.tree_head


def _make_proof(
    log: LogRecord, tree_head: SignedTreeHead, content: dict[str, Any], path: list[bytes]
) -> dict[str, Any]:
    header = {"format": _FORMAT, "log": log.origin, "owner": log.subject, "key": log.keys[-1].hex}
    return {**header, **content, "path": [step.hex() for step in path], "checkpoint": tree_head.to_fields()}


def _parse_integer(number: object) -> int:
    if type(number) is not int:
        raise ValueError
    return number


def _parse_hash(text: object) -> bytes:
    if not isinstance(text, str) or len(text) != _HASH_DIGITS:
        raise ValueError
    return bytes.fromhex(text)
