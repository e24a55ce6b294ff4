"""Verification of `log.jsonl`, the lines that a bundle holds beside a log for people and other tools."""

import sys
from itertools import zip_longest
from typing import Final

from fedglm.audit.records.checks import Check
from fedglm.audit.records.log_records import LogRecord
from fedglm.core.untrusted_files import regular_lines
from fedglm.privacy.log.entries import MAX_BYTES

LINES: Final = "log.jsonl"


def audit_lines(record: LogRecord) -> list[Check]:
    """Hold the lines beside a log to its entries, one by one; no check where there are none.

    Raises:
        LogError: The log was changed since it was read.
    """
    path = record.path.with_name(LINES)
    if not path.exists():
        return []
    held, said = False, ""
    try:
        lines = regular_lines(path, sys.maxsize, MAX_BYTES)
        pairs = enumerate(zip_longest(record.texts(), lines), 1)
        number = next((number for number, (text, line) in pairs if text != line), 0)
        held, said = not number, f"line {number} of {LINES} is not entry {number} of the log"
    except OSError as exc:
        said = f"{LINES} cannot be read: {exc.strerror}"
    if held:
        said = f"{record.size} lines of {LINES}, each of which is an entry of the log"
    return [Check(subject=record.subject, name="lines", held=held, said=said)]
