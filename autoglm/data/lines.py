"""The lines of a file, by rows: after a row that cannot be parsed, all its lines but the first are read again."""

from __future__ import annotations

import gzip
from collections import deque
from typing import IO

from fedglm.autoglm.data.row_faults import Reason, RowError, RowFaults, RowPlace, report

MAX_ROW_BYTES = 1 << 20
"""Maximum bytes of a row where faults are counted: about two novels. A longer one might exceed a node's memory."""


class Lines:
    """Iterates over lines as text; UTF-8, with or without a byte order mark.

    Args:
        source: Name of the file.
        file: The file, open for reading bytes.
        faults: Counts rows that cannot be used; None where they are errors.

    Attributes:
        source: Name of the file.
        number: Number of the last line read, from 1.
    """

    def __init__(self, source: str, file: IO[bytes] | gzip.GzipFile, faults: RowFaults | None) -> None:
        self.source, self.number = source, 0
        self._file, self._faults = file, faults
        self._again: deque[bytes] = deque()
        self._row: list[bytes] = []
        self._size = 0

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        """Read the next line of the row.

        Raises:
            RowError: The line is not UTF-8, the row has become too long, or it may not have another line.
        """
        if self._row and self._faults is not None and not self._faults.line_breaks:
            raise self.fault("syntax", "a quote is opened and not closed in the same line")
        raw = self._again.popleft() if self._again else self._read()
        if not raw:
            raise StopIteration
        self.number += 1
        self._row.append(raw)
        self._size += len(raw)
        if self._faults is not None and self._size > MAX_ROW_BYTES:
            raise self.fault("length", f"longer than {MAX_ROW_BYTES} bytes")
        try:
            return raw.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError as exc:
            raise self.fault("encoding", f"not UTF-8 (byte {exc.start + 1} of the line); save it so") from exc

    def begin_row(self) -> None:
        """Start a new row with the next line."""
        self._row, self._size = [], 0

    def leave_out(self, error: RowError) -> None:
        """Count the row's first line as a fault and continue with the next line; raise where faults are not counted."""
        following = len(self._row) - 1
        if following and self._faults is not None:
            # The lines after the first may be valid: the first may have a quote that is never closed.
            self._again.extendleft(reversed(self._row[1:]))
            self.number -= following
            error = self.fault("syntax", "no row of such a file")
        report(error, self._faults)

    def fault(self, reason: Reason, message: str) -> RowError:
        """Make an error of the last line read."""
        return RowError(reason, RowPlace(self.source, self.number), message)

    def _read(self) -> bytes:
        if self._faults is None:
            return self._file.readline()
        first = part = self._file.readline(MAX_ROW_BYTES + 1)
        while len(part) > MAX_ROW_BYTES and not part.endswith(b"\n"):  # skip the rest of a line that is too long
            part = self._file.readline(MAX_ROW_BYTES + 1)
        return first
