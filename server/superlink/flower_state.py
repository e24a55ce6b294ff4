"""Flower's database of a SuperLink: how large it may become, how long a request waits for it, and what it says then.

SQLite takes one writer at a time. Flower waits five seconds for it, and answers with 500 then: at that a node's loop
ends, and a run. Here a request waits longer; where the database is still busy, or full, the answer is to try again.
"""

import importlib
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError

_BUSY_MS: Final = 20_000  # less than the 30 s after which those who ask hang up
_PAGE_BYTES: Final = 4096  # SQLite's, since 2016
_LOG_BYTES: Final = 64 * 2**20  # that the write-ahead log is cut back to


def bound_database(bytes_at_most: int) -> None:
    """Set how large the database of this process's Flower may become; to be called before that opens it.

    Args:
        bytes_at_most: Of its file.
    """
    mixin = vars(importlib.import_module("flwr.supercore.sql_mixin"))
    kept = [(name, value) for name, value in mixin["SQLITE_PRAGMAS"] if name != "busy_timeout"]
    mixin["SQLITE_PRAGMAS"] = (
        ("busy_timeout", str(_BUSY_MS)),
        *kept,
        ("max_page_count", str(bytes_at_most // _PAGE_BYTES)),
        ("journal_size_limit", str(_LOG_BYTES)),
    )


def say_try_again(app: FastAPI) -> None:
    """Have Flower's application answer with 503 where the database is busy or full."""

    async def answer(_: Request, exc: Exception) -> JSONResponse:
        cause: Any = getattr(exc, "orig", exc)
        return JSONResponse({"detail": f"the SuperLink's database: {cause}"}, status_code=503)

    app.add_exception_handler(OperationalError, answer)
