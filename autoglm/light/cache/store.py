"""A folder of finished work: each entry a file of weights and a JSON file of facts, whole or absent, bounded in bytes.

An entry is written weights first, facts last, each in one step, so that one whose facts are there is whole; what a kill
leaves behind is cleared by the next that writes. The facts hold the size and hash of the weights and of themselves:
what does not match is dropped, and said. Nothing is unpickled. Beyond the bound what was used least recently goes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.core.files import StorageError, storage_errors, write_atomically
from fedglm.core.locks import hold_lock
from fedglm.core.untrusted_files import read_regular

DEFAULT_BYTES: Final = 1 << 31
"""Bound of a folder: a thousand models of half a million parameters, or a few of a hundred million."""

_SCHEMA: Final = "fedglm-trials/1"
_MAX_FACTS: Final = 1 << 24
_PATIENCE_S: Final = 30.0
_FACTS, _WEIGHTS, _LOCK = ".json", ".safetensors", "lock"
_OURS = re.compile(r"\.?[0-9a-f]{64}\.(json|safetensors)(\..*)?")


@dataclass(frozen=True, eq=False, kw_only=True)
class Entry:
    """Finished work.

    Attributes:
        facts: Plain JSON values.
        weights: Content of a file of safetensors; None where there are no weights.
    """

    facts: dict[str, Any]
    weights: bytes | None = None


def default_folder() -> Path:
    """Return the user's own folder of trials (XDG Base Directory Specification).

    Raises:
        StorageError: The user has no home folder, as a service may have none.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        base = named if named.is_absolute() else Path.home() / ".cache"
    except RuntimeError as exc:
        raise StorageError("there is no home folder to keep them in; --cache names another") from exc
    return base / "fedglm" / "light"


class Store:
    """Keeps entries in a folder that nobody else may write to.

    Args:
        folder: The folder; it is made if missing, for its owner alone.
        max_bytes: Bound of all entries together.
        warn: Called with a line about each entry that was dropped or could not be kept.

    Raises:
        LightenError: Others may write to the folder, or it is another user's.
        StorageError: It cannot be made.
    """

    def __init__(
        self, folder: Path, *, max_bytes: int = DEFAULT_BYTES, warn: Callable[[str], None] = lambda _: None
    ) -> None:
        self.folder, self._max_bytes, self._warn = folder, max_bytes, warn
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = folder.stat()
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise LightenError(
                f"{folder}: others may write there, and so could choose the weights that are released: chmod 700, name "
                "another folder with --cache, or leave it out with --no-cache"
            )

    def load(self, key: str) -> Entry | None:
        """Return an entry, which then counts as used; None where there is none that is whole.

        Args:
            key: 64 hexadecimal digits.
        """
        path = self._path(key, _FACTS)
        try:
            entry = self._read(key)
            os.utime(path)
        except FileNotFoundError:
            if path.exists():
                self.drop(key, "its weights are missing")
            return None
        except (OSError, ValueError, RecursionError) as exc:
            self.drop(key, str(exc))
            return None
        return entry

    def save(self, key: str, entry: Entry) -> None:
        """Keep an entry; one that cannot be kept is said, and is no error.

        Args:
            key: 64 hexadecimal digits.
            entry: What is kept.
        """
        facts = _seal(entry)
        size = len(facts) + len(entry.weights or b"")
        if size > self._max_bytes or len(facts) > _MAX_FACTS:
            self._warn(f"{self.folder}: a trial of {size:,} bytes is larger than the cache and was not kept")
            return
        try:
            with hold_lock(self.folder / _LOCK, patience_s=_PATIENCE_S) as held:
                if not held:
                    self._warn(f"{self.folder}: another process holds the cache; a trial was not kept")
                    return
                self._make_room(size)
                if entry.weights is not None:
                    write_atomically(self._path(key, _WEIGHTS), entry.weights, mode=0o600)
                write_atomically(self._path(key, _FACTS), facts, mode=0o600)
        except StorageError as exc:
            self._warn(f"a trial was not kept: {exc}")

    def drop(self, key: str, reason: str) -> None:
        """Remove an entry that cannot be used, and say so."""
        self._warn(f"{self._path(key, _FACTS)}: the kept trial is damaged ({reason}); it is dropped and made again")
        self._remove(key)

    def _path(self, key: str, suffix: str) -> Path:
        return self.folder / f"{key}{suffix}"

    def _read(self, key: str) -> Entry:
        record = json.loads(read_regular(self._path(key, _FACTS), _MAX_FACTS))
        if not isinstance(record, dict) or record.get("schema") != _SCHEMA:
            raise ValueError(f"it is no {_SCHEMA}")
        if record.pop("sha256", None) != _hash_json(record):
            raise ValueError("its facts do not have their hash")
        size, sha256 = record["weights_bytes"], record["weights_sha256"]
        if size is None:
            return Entry(facts=record["facts"])
        weights = read_regular(self._path(key, _WEIGHTS), size)
        if len(weights) != size or hashlib.sha256(weights).hexdigest() != sha256:
            raise ValueError("its weights do not have their hash")
        return Entry(facts=record["facts"], weights=weights)

    def _make_room(self, wanted: int) -> None:
        """Remove what is no entry but was to be one, and entries until there is room; the lock is held."""
        used: list[tuple[int, str, int]] = []
        for path in self.folder.iterdir():
            if not _OURS.fullmatch(path.name):
                continue
            if path.suffix == _FACTS and not path.name.startswith("."):
                weights = path.with_suffix(_WEIGHTS)
                size = path.stat().st_size + (weights.stat().st_size if weights.exists() else 0)
                used.append((path.stat().st_mtime_ns, path.stem, size))
            elif path.name.startswith(".") or not path.with_suffix(_FACTS).exists():
                path.unlink(missing_ok=True)
        total = sum(size for _, _, size in used)
        for _, key, size in sorted(used):
            if total + wanted <= self._max_bytes:
                break
            self._remove(key)
            total -= size

    def _remove(self, key: str) -> None:
        for suffix in (_FACTS, _WEIGHTS):  # facts first: without them the rest is no entry
            self._path(key, suffix).unlink(missing_ok=True)


def _seal(entry: Entry) -> str:
    weights = entry.weights
    record = {
        "schema": _SCHEMA,
        "facts": entry.facts,
        "weights_bytes": None if weights is None else len(weights),
        "weights_sha256": None if weights is None else hashlib.sha256(weights).hexdigest(),
    }
    return json.dumps(record | {"sha256": _hash_json(record)})


def _hash_json(record: dict[str, Any]) -> str:
    """Hash plain values as Python writes them, which reads them back to the bit: infinite floats and order too."""
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()
