"""A site that is enrolled and hostile: what it sends costs it the round, and nobody else anything."""

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import soon
from real_federation import Federation

from fedglm.cli.process.daemon import MARK
from fedglm.cli.process.flower_environment import make_flower_environment

SHORT = ("--rounds", "2", "--set", "evaluation.baselines=[]")
TOLERANT = ("--set", "federation.enough=0.5", "--set", "federation.join_timeout_s=30")


def test_what_no_answer_is_as_long_as_is_not_read(live):
    """Signed by an enrolled site, and announced as long as an answer never is: it is refused before it comes."""
    with live.connect() as connection:
        connection.settimeout(5)
        connection.sendall(live.head("push-object", "a", 60_000_000, signed=True) + bytes(1000))
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    assert live.serves("b")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_database_that_is_busy_ends_nothing(live):
    """Whatever keeps it busy: nodes and runs are told to try again, and later ones go on."""
    with contextlib.closing(sqlite3.connect(live.project.database, isolation_level=None, timeout=10)) as held:
        held.execute("BEGIN IMMEDIATE")
        assert live.ask("a", timeout=60)[0] == 503, "at another status a node's loop ends"
        time.sleep(10)  # whoever asks once a second has asked
        held.execute("ROLLBACK")
    assert live.serves("a")
    assert live.starts_runs(), "nobody starts runs any more"


@contextlib.contextmanager
def hostile(federation, name, behaviour):
    """The site's node, replaced by one of another behaviour."""
    site = federation.site(name)
    mark = {MARK: f"{site / 'state'}/supernode"}  # so that it ends with the federation
    command = [sys.executable, Path(__file__).parents[1] / "support" / "hostile_node.py", site, behaviour]
    with (federation.folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | make_flower_environment(site / "state" / "flwr") | mark,
        )
    try:
        assert soon(lambda: b"SuperNode ID" in Path(log.name).read_bytes(), 60)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("behaviour", ["flood", "swell"])
def test_a_site_that_answers_with_far_too_much(tmp_path, behaviour):
    with Federation(tmp_path, 3) as federation:
        federation.start_server()
        server = federation.project / "state"
        for name in federation.names[:2]:
            federation.start_site(name)
        with hostile(federation, "site-2", behaviour):
            with federation.run("hospital", "flooded", "--no-dp", *SHORT, *TOLERANT) as process:
                result = process.finish(timeout=600)
            assert result.code == 0, result.err
            assert len(federation.rounds("flooded")) == 2
            assert {event["node"] for event in federation.events("flooded") if event["event"] == "reply"} <= {
                "site-0",
                "site-1",
            }
            assert soon(lambda: re.search(r"turned away .*site-2", (server / "superlink.log").read_text()), 120)
        with federation.run("hospital", "after", "--no-dp", *SHORT, *TOLERANT) as process:
            result = process.finish(timeout=600)
        assert result.code == 0, result.err
        assert (server / "superlink.db").stat().st_size < 50e6
        federation.stop()
