"""The SuperLink's database: it has an end, and who finds it busy or full is told to try again."""

import hashlib

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore import sql_mixin
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from sqlalchemy.exc import OperationalError

from fedglm.server.superlink.flower_state import limit_database, respond_503_on_database_errors


def put_part(store, number):
    part = ArrayChunk(bytes([number]) * 200_000).deflate()
    name = hashlib.sha256(part).hexdigest()
    store.preregister(1, ObjectTree(object_id=name))
    store.put(name, part)


def test_a_database_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", sql_mixin.SQLITE_PRAGMAS)  # put back after the test
    limit_database(2 * 2**20)
    path = tmp_path / "superlink.db"
    store = SqlObjectStore(str(path))
    store.initialize()
    for number in range(5):
        put_part(store, number)
    with pytest.raises(OperationalError, match="full"):  # noqa: PT012 - one of the next
        for number in range(5, 11):
            put_part(store, number)
    assert path.stat().st_size <= 2 * 2**20


@pytest.mark.parametrize(("error", "status"), [(OperationalError("SELECT", {}, Exception("database is locked")), 503)])
def test_a_busy_database_is_no_fault(error, status):
    app = FastAPI()

    @app.post("/x")
    def fail():
        raise error

    respond_503_on_database_errors(app)
    assert TestClient(app, raise_server_exceptions=False).post("/x").status_code == status
