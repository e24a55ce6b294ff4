"""A node's refusals, one JSON object a line, in a file that only its owner may read.

A line holds when, under which rule, why, in which run and round: words about settings, never about records. Each line
is on the disk before `record` returns. A crash may leave the beginning of a line, which nobody was told of; readers
leave it out, and the next record takes its place.
"""

import fcntl
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from fedglm.privacy.canonical import canonical_json, read_canonical_json
from fedglm.privacy.durable import storage_errors, sync_folder
from fedglm.privacy.errors import PrivacyError, Refusal

_LONGEST_REASON = 500
_LONGEST_RUN = 200


@dataclass(frozen=True, kw_only=True)
class RefusalEntry:
    """One line of the log.

    Attributes:
        time: UTC, ISO 8601 to the second.
        rule: Name of the rule.
        reason: Why it was broken.
        run: Run that was asked for; empty where it is not known.
        round: Round that was asked for; 0 for the plan of the run.
    """

    time: str
    rule: str
    reason: str
    run: str
    round: int


class RefusalLog:
    """Appends to `path` and reads it; several processes may at once.

    Args:
        path: The file, `refusals.jsonl`; it is made, with rights 0600, when the first refusal comes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def record(self, refusal: Refusal, *, run: str, round_number: int) -> RefusalEntry:
        """Write one refusal; what the server sent is cut to a bounded length.

        Raises:
            StorageError: The line could not be written. The refusal stands all the same.
        """
        entry = RefusalEntry(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            rule=refusal.rule,
            reason=_printable(refusal.reason, _LONGEST_REASON),
            run=_printable(run, _LONGEST_RUN),
            round=round_number,
        )
        with storage_errors(self._path):
            new = not self._path.exists()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                os.fchmod(descriptor, 0o600)  # an older file may have had other rights
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # until the file is closed
                _drop_unfinished_line(file)
                file.write(canonical_json(asdict(entry)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync_folder(self._path.parent)
        return entry

    def entries(self) -> list[RefusalEntry]:
        """All refusals, oldest first; none where there is no file.

        Raises:
            PrivacyError: A line is damaged.
        """
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise PrivacyError(f"cannot read {self._path}: {exc.strerror}") from exc
        return [self._entry(line, number) for number, line in enumerate(lines[:-1], 1)]

    def _entry(self, line: bytes, number: int) -> RefusalEntry:
        try:
            fields = read_canonical_json(line)
            entry = RefusalEntry(**fields)
        except (ValueError, TypeError) as exc:
            raise PrivacyError(f"{self._path}: line {number} is damaged") from exc
        if any(type(getattr(entry, name)) is not (int if name == "round" else str) for name in fields):
            raise PrivacyError(f"{self._path}: line {number} is damaged")
        return entry


def _drop_unfinished_line(file: BinaryIO) -> None:
    """Cut off what a crash left after the last line, and stand at the end."""
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            end = file.read().rfind(b"\n") + 1
            file.truncate(end)
    file.seek(end)


def _printable(text: str, longest: int) -> str:
    return "".join(character if character.isprintable() else " " for character in text[:longest])
