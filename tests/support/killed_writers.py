"""Files of logs and ledgers as a writer leaves them that is killed in the middle of a transaction."""

import signal
import subprocess
import sys
from pathlib import Path

_WRITE = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 1")
database.execute("PRAGMA cache_spill = 1")
database.execute("BEGIN IMMEDIATE")
database.execute(f"UPDATE {sys.argv[2]} SET entry = 'half of it ' || entry")
for number in range(10_000, 10_100):
    database.execute(f"INSERT INTO {sys.argv[2]} VALUES (?, ?, ?)", (number, "x" * 2000, "0" * 64))
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_writer_of(path: Path) -> None:
    """Have a process die that has changed the file, so that only its journal says what was in it."""
    before = path.read_bytes()
    table = "charges" if path.name == "ledger.sqlite" else "entries"
    done = subprocess.run([sys.executable, "-c", _WRITE, path, table], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() != before
    assert path.with_name(f"{path.name}-journal").stat().st_size
