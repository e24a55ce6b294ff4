"""Database of Flower's SuperLink: its maximum size, how long a request waits for it, and the response after that.

SQLite allows one writer at a time. Flower waits five seconds for it, and then responds with 500, which ends a node's
message loop, and a run. Here a request waits longer; where the database is still busy, or full, the response is 503,
and the client tries again.
"""

import importlib
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError

_BUSY_TIMEOUT_MS: Final = 20_000  # less than the 30 s after which clients disconnect
_PAGE_BYTES: Final = 4096  # SQLite's default since 2016
_JOURNAL_BYTES: Final = 64 * 2**20  # to which the write-ahead log is truncated


def limit_database(max_bytes: int) -> None:
    """Limit the size of the database of this process's Flower; must be called before Flower opens it.

    Args:
        max_bytes: Maximum size of the file.
    """
    mixin = vars(importlib.import_module("flwr.supercore.sql_mixin"))
    others = [(name, value) for name, value in mixin["SQLITE_PRAGMAS"] if name != "busy_timeout"]
    mixin["SQLITE_PRAGMAS"] = (
        ("busy_timeout", str(_BUSY_TIMEOUT_MS)),
        *others,
        ("max_page_count", str(max_bytes // _PAGE_BYTES)),
        ("journal_size_limit", str(_JOURNAL_BYTES)),
    )


def respond_503_on_database_errors(app: FastAPI) -> None:
    """Have Flower's application respond with 503 where the database is busy or full."""

    async def respond(_: Request, exc: Exception) -> JSONResponse:
        cause: Any = getattr(exc, "orig", exc)
        return JSONResponse({"detail": f"the SuperLink's database: {cause}"}, status_code=503)

    app.add_exception_handler(OperationalError, respond)
