"""`fedglm demo` from end to end: real processes, TLS, noise; and Ctrl-C in the middle."""

import json
from pathlib import Path

import pytest
from command_line import Process, soon

from fedglm.cli.demo.demonstration import list_daemons
from fedglm.cli.demo.plan import ROUNDS, SITES, Folders

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_deployed_federation_from_nothing_to_a_verified_report(tmp_path):
    with Process("demo", "--out", tmp_path / "demo", "--json") as process:
        result = process.finish(timeout=600)
        assert result.code == 0, result.err
        assert process.descendants() == set(), "the demo left processes behind"
    summary = json.loads(result.out)
    assert summary["verdict"] == "whole"
    assert summary["rounds"] == ROUNDS
    assert sum(summary["seconds"].values()) < 300, "75 s on two idle cores"
    folders = Folders(tmp_path / "demo")
    assert all(not daemon.members() for daemon in list_daemons(folders))
    rows = [json.loads(line) for line in (folders.run / "rounds.jsonl").read_text().splitlines()]
    assert [row["nodes_accepted"] for row in rows] == [len(SITES)] * ROUNDS
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert summary["accuracy"] == rows[-1]["accuracy"] > 0.7, "the majority class has 63 %"
    for page in (summary["report"], summary["audit_report"]):
        assert "<html" in Path(page).read_text()
    assert "Traceback" not in folders.log.read_text()


def test_ctrl_c_in_the_middle_leaves_nothing_running(tmp_path):
    folders = Folders(tmp_path / "demo")
    with Process("demo", "--out", folders.out) as process:
        process.until(lambda: (folders.run / "rounds.jsonl").is_file(), timeout=300)
        assert len(process.descendants()) >= 4
        process.press_ctrl_c()
        result = process.finish(timeout=120)
        assert result.code == 130, result.err
        assert soon(lambda: process.descendants() == set()), "Ctrl-C left processes behind"
    assert "all that was started has ended" in result.err
    assert "Traceback" not in result.err
