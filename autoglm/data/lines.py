"""The lines of a file, row by row: of a row that cannot be read all lines but the first may be read again."""

from __future__ import annotations

import gzip
from collections import deque
from typing import IO

from fedglm.autoglm.data.row_faults import Reason, RowError, RowFaults, RowPlace, report

MAX_ROW_BYTES = 1 << 20
"""Of a row, where faults are counted: about two novels. A longer one could be more than a small node has memory for."""


class Lines:
    """Iterates over lines as text; UTF-8, with or without a byte order mark.

    Args:
        source: Name of the file.
        file: Its bytes.
        faults: Counts rows that cannot be used; None where they are errors.

    Attributes:
        source: Name of the file.
        number: Of the line that was read last, from 1.
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
        """The next line, one more of the row.

        Raises:
            RowError: It is not UTF-8, the row has become too long, or it may not have another line.
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
        """What comes is another row."""
        self._row, self._size = [], 0

    def leave_out(self, error: RowError) -> None:
        """Count the first line of the row as none, and go on with the line after it; raise where nobody counts."""
        spare = len(self._row) - 1
        if spare and self._faults is not None:
            # The lines after the first may be sound: it may be a quote in the first that is never closed.
            self._again.extendleft(reversed(self._row[1:]))
            self.number -= spare
            error = self.fault("syntax", "no row of such a file")
        report(error, self._faults)

    def fault(self, reason: Reason, message: str) -> RowError:
        """An error in the line that was read last."""
        return RowError(reason, RowPlace(self.source, self.number), message)

    def _read(self) -> bytes:
        if self._faults is None:
            return self._file.readline()
        first = part = self._file.readline(MAX_ROW_BYTES + 1)
        while len(part) > MAX_ROW_BYTES and not part.endswith(b"\n"):  # what is too long is passed over
            part = self._file.readline(MAX_ROW_BYTES + 1)
        return first
