"""The log of a node's refusals, one JSON object per line, in a file that only its owner may read.

A line has time, rule, reason, run and round: words about settings, never about records. Each line is durable on the
disk before `record` returns. A crash may leave the beginning of a line, whose refusal was not reported to anybody;
readers skip it, and the next record replaces it.

No server may fill the site's disk with requests that are refused. Lines are appended and never rewritten until they
take `MAX_BYTES`; then a last line says that the log is full, and each further refusal is counted by its rule in a file
beside it, with the first and the last one of the rule in full. Rules are named in our code, so that there are few.
The counts are replaced atomically and durable on the disk before `record` returns: whenever a node is killed, each of
its refusals has a line or is counted. A site that wants lines again moves both files away together.
"""

import fcntl
import os
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from fedglm.core.canonical_json import canonical_json, read_canonical_json
from fedglm.core.files import storage_errors, sync_folder, write_atomically
from fedglm.privacy.errors import PrivacyError, Refusal
from fedglm.privacy.log.chained_file import utc_now

MAX_BYTES: Final = 1 << 20
"""Size of a full log, some thousand lines."""
LOG_FULL_RULE: Final = "log-full"
"""Rule of the last line of a full log."""

_MAX_REASON = 500
_MAX_RUN = 200


@dataclass(frozen=True, kw_only=True)
class RefusalEntry:
    """One line of the log.

    Attributes:
        time: Time of the refusal: UTC, ISO 8601 to the second.
        rule: Name of the rule.
        reason: Reason of the refusal.
        run: Identity of the run; empty where it is unknown.
        round: Number of the round; 0 for the plan of the run.
    """

    time: str
    rule: str
    reason: str
    run: str
    round: int


@dataclass(frozen=True, kw_only=True)
class RefusalCount:
    """Refusals of one rule after the log was full.

    Attributes:
        count: Number of refusals, at least 1.
        first: The first refusal.
        last: The last refusal.
    """

    count: int
    first: RefusalEntry
    last: RefusalEntry


@dataclass(frozen=True)
class RefusalSummary:
    """All refusals of a site.

    Attributes:
        by_rule: Number of refusals by rule.
        last: The last refusal; None for none.
    """

    by_rule: Counter[str]
    last: RefusalEntry | None


class RefusalLog:
    """Appends refusals to a file and reads it; several processes may use it at once.

    Args:
        path: Path of the file, `refusals.jsonl`; the first refusal creates it, with mode 0600. The counts are beside
            it, in `refusals.counts.json`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts_path = path.with_suffix(".counts.json")

    def record(self, refusal: Refusal, *, run: str, round_number: int) -> RefusalEntry:
        """Write one refusal, or count it where the log is full; text from the server is cut to a bounded length.

        Raises:
            StorageError: The entry could not be written. The refusal is valid all the same.
            PrivacyError: The log is full, and the counts are damaged. The refusal is valid all the same.
        """
        entry = RefusalEntry(
            time=utc_now(),
            rule=refusal.rule,
            reason=_make_printable(refusal.reason, _MAX_REASON),
            run=_make_printable(run, _MAX_RUN),
            round=round_number,
        )
        with storage_errors(self._path):
            new = not self._path.exists()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                os.fchmod(descriptor, 0o600)  # an older file may have another mode
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # until the file is closed
                self._write(file, entry)
            if new:
                sync_folder(self._path.parent)
        return entry

    def entries(self) -> list[RefusalEntry]:
        """Read all lines, oldest first; none where there is no file.

        Raises:
            PrivacyError: A line is damaged.
        """
        lines = _read_file(self._path).split(b"\n")
        return [self._read_line(line, number) for number, line in enumerate(lines[:-1], 1)]

    def counts(self) -> dict[str, RefusalCount]:
        """Read the counts of refusals after the log was full, by rule; empty where it is not full.

        Raises:
            PrivacyError: The file is damaged.
        """
        if not self._counts_path.exists():
            return {}
        try:
            tree = read_canonical_json(_read_file(self._counts_path))
            return {rule: _parse_count(fields) for rule, fields in tree.items()}
        except (ValueError, TypeError, AttributeError) as exc:
            raise PrivacyError(f"{self._counts_path} is damaged: move it away, and refusals are counted anew") from exc

    def summary(self) -> RefusalSummary:
        """Summarize all refusals, those with a line of their own and those that were only counted.

        Raises:
            PrivacyError: A line or the counts are damaged.
        """
        entries, counts = self.entries(), self.counts()
        by_rule = Counter(entry.rule for entry in entries)
        by_rule.update({rule: count.count for rule, count in counts.items()})
        latest = [*entries[-1:], *(count.last for count in counts.values())]
        return RefusalSummary(by_rule, max(latest, key=lambda entry: entry.time, default=None))

    def _write(self, file: BinaryIO, entry: RefusalEntry) -> None:
        """Write a line or a count, while the file is locked."""
        if _drop_unfinished_line(file) <= MAX_BYTES:
            _append(file, entry)
            return
        if not self._counts_path.exists():
            reason = f"the log is full: from here on refusals are counted in {self._counts_path.name}"
            _append(file, replace(entry, rule=LOG_FULL_RULE, reason=reason, run="", round=0))
        counts = self.counts()
        before = counts.get(entry.rule)
        count = RefusalCount(
            count=before.count + 1 if before else 1, first=before.first if before else entry, last=entry
        )
        tree = {rule: asdict(count) for rule, count in {**counts, entry.rule: count}.items()}
        write_atomically(self._counts_path, canonical_json(tree), mode=0o600)

    def _read_line(self, line: bytes, number: int) -> RefusalEntry:
        try:
            return _parse_entry(read_canonical_json(line))
        except (ValueError, TypeError) as exc:
            raise PrivacyError(f"{self._path}: line {number} is damaged") from exc


def _parse_entry(fields: Any) -> RefusalEntry:
    """Parse an entry; raise ValueError or TypeError where the fields are malformed."""
    entry = RefusalEntry(**fields)
    if any(type(value) is not (int if name == "round" else str) for name, value in fields.items()):
        raise ValueError("a field of another kind")
    return entry


def _parse_count(fields: Any) -> RefusalCount:
    """Parse a count; raise ValueError or TypeError where the fields are malformed."""
    count = RefusalCount(**fields)
    if type(count.count) is not int or count.count < 1:
        raise ValueError("no number of refusals")
    return replace(count, first=_parse_entry(count.first), last=_parse_entry(count.last))


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as exc:
        raise PrivacyError(f"cannot read {path}: {exc.strerror}") from exc


def _append(file: BinaryIO, entry: RefusalEntry) -> None:
    file.write(canonical_json(asdict(entry)) + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _drop_unfinished_line(file: BinaryIO) -> int:
    """Truncate an unfinished line, which a crash left, and seek to the end; return the file's size."""
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            end = file.read().rfind(b"\n") + 1
            file.truncate(end)
    return file.seek(end)


def _make_printable(text: str, max_length: int) -> str:
    return "".join(character if character.isprintable() else " " for character in text[:max_length])
