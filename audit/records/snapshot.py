"""Copies of a log or a ledger as it stood at one moment, for readers of evidence who must not change it.

SQLite would roll the journal of a killed writer back into the file, and a living writer may be in the middle of an
entry. The copy holds the bytes of the file itself if no writer was killed, and else what SQLite makes of file and
journal; neither is changed.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from fedglm.audit.records.untrusted_sqlite import open_untrusted


def read_snapshot(path: Path) -> bytes:
    """Read the bytes of the file as its last complete transaction left it.

    Args:
        path: Path of a log or a ledger.

    Raises:
        LogError: The file cannot be read.
    """
    with open_untrusted(path) as database:
        # Until this connection is closed no writer changes the file; SQLite rolls a copy back before it reads.
        database.execute("BEGIN")
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        # The first row is the main file; temporary databases follow.
        _, _, name = database.execute("PRAGMA database_list").fetchone()
        (pages,), (size,) = (database.execute(f"PRAGMA {what}").fetchone() for what in ("page_count", "page_size"))
        with Path(name).open("rb") as file:
            return file.read(pages * size)  # behind the pages, a stranger's file may end in a hole of any length


@contextlib.contextmanager
def snapshot(path: Path) -> Iterator[Path]:
    """Copy the file as `read_snapshot` reads it into a folder that is deleted after the block.

    Args:
        path: Path of a log or a ledger.

    Yields:
        Path of the copy, which has the file's name.

    Raises:
        LogError: The file cannot be read.
    """
    with TemporaryDirectory(prefix="fedglm-audit-") as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(read_snapshot(path))
        yield copy
