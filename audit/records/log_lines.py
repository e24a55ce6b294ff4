"""Verifies `log.jsonl`, the lines that a bundle has beside a log for people and other tools."""

import sys
from itertools import zip_longest
from typing import Final

from fedglm.audit.records.checks import Check
from fedglm.audit.records.log_records import LogRecord
from fedglm.core.untrusted_files import read_regular_lines
from fedglm.privacy.log.entries import MAX_BYTES

LINES: Final = "log.jsonl"


def check_lines(record: LogRecord) -> list[Check]:
    """Compare the lines beside a log with its entries, one by one.

    Returns:
        One check; none if there is no such file.

    Raises:
        LogError: The log was changed since it was read.
    """
    path = record.path.with_name(LINES)
    if not path.exists():
        return []
    passed, detail = False, ""
    try:
        lines = read_regular_lines(path, sys.maxsize, MAX_BYTES)
        pairs = enumerate(zip_longest(record.read_texts(), lines), 1)
        number = next((number for number, (text, line) in pairs if text != line), 0)
        passed, detail = not number, f"line {number} of {LINES} is not entry {number} of the log"
    except OSError as exc:
        detail = f"{LINES} cannot be read: {exc.strerror}"
    if passed:
        detail = f"{record.size} lines of {LINES}, each of which is an entry of the log"
    return [Check(subject=record.subject, name="lines", passed=passed, detail=detail)]
