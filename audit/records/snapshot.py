"""A log or a ledger as it stood at one moment, in a file of its own: for those who read evidence and must not touch it.

SQLite would roll the journal of a killed writer back into the file, and a living writer may be in the middle of an
entry. The copy holds the bytes of the file itself where no writer was killed, and what SQLite makes of file and journal
where one was; neither is changed.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from fedglm.audit.records.untrusted_sqlite import opened


def content_of(path: Path) -> bytes:
    """The bytes of the file as its last whole transaction left it.

    Raises:
        LogError: It cannot be read.
    """
    with opened(path) as database:
        # Until this connection is closed no writer changes the file; SQLite sets a copy right before it reads.
        database.execute("BEGIN")
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        # The file comes first, and after it what SQLite keeps aside.
        _, _, name = database.execute("PRAGMA database_list").fetchone()
        (pages,), (size,) = (database.execute(f"PRAGMA {what}").fetchone() for what in ("page_count", "page_size"))
        with Path(name).open("rb") as file:
            return file.read(pages * size)  # a stranger's may have an end of nothing behind its pages


@contextlib.contextmanager
def snapshot(path: Path) -> Iterator[Path]:
    """A copy of the file in a folder that is gone after the block; raises as `content_of`."""
    with TemporaryDirectory(prefix="fedglm-audit-") as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(content_of(path))
        yield copy
