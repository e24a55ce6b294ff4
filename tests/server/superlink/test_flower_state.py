"""The SuperLink's database: it has an end, and who finds it busy or full is told to try again."""

import subprocess
import sys

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from fedglm.server.superlink.flower_state import respond_503_on_database_errors

FILL = """
import hashlib, sys
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.message_pb2 import ObjectTree
from sqlalchemy.exc import OperationalError
from fedglm.server.superlink.flower_state import limit_database
limit_database(2 * 2**20)
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
store = SqlObjectStore(sys.argv[1])
store.initialize()
for number in range(100):
    part = ArrayChunk(bytes([number]) * 200_000).deflate()
    name = hashlib.sha256(part).hexdigest()
    try:
        store.preregister(1, ObjectTree(object_id=name))
        store.put(name, part)
    except OperationalError as exc:
        print(number, exc.orig)
        break
"""


def test_a_database_has_an_end(tmp_path):
    path = tmp_path / "superlink.db"
    done = subprocess.run([sys.executable, "-c", FILL, path], capture_output=True, text=True, check=True)
    number, reason = done.stdout.split(" ", 1)
    assert 5 <= int(number) <= 10
    assert "full" in reason
    assert path.stat().st_size <= 2 * 2**20


@pytest.mark.parametrize(("error", "status"), [(OperationalError("SELECT", {}, Exception("database is locked")), 503)])
def test_a_busy_database_is_no_fault(error, status):
    app = FastAPI()

    @app.post("/x")
    def fail():
        raise error

    respond_503_on_database_errors(app)
    assert TestClient(app, raise_server_exceptions=False).post("/x").status_code == status
