import json
import os
import stat
import subprocess
import sys
from datetime import datetime, timedelta

import pytest

from fedglm.privacy.durable import StorageError
from fedglm.privacy.errors import PrivacyError, Refusal
from fedglm.privacy.refusal_log import RefusalLog

REFUSAL = Refusal("noise-multiplier", "noise multiplier 0.5, and noise_multiplier_at_least is 1")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "node" / "refusals.jsonl"


def test_refusals_are_kept_in_order_one_json_object_a_line(path):
    log = RefusalLog(path)
    assert log.entries() == []
    written = [log.record(REFUSAL, run="run-1", round_number=number) for number in (1, 2)]
    assert log.entries() == RefusalLog(path).entries() == written
    lines = path.read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2]
    assert json.loads(lines[0]) == {
        "time": written[0].time,
        "rule": "noise-multiplier",
        "reason": "noise multiplier 0.5, and noise_multiplier_at_least is 1",
        "run": "run-1",
        "round": 1,
    }
    said = datetime.fromisoformat(written[0].time)
    assert said.utcoffset() == timedelta(0)


def test_only_the_owner_reads_the_log(path):
    path.parent.mkdir()
    path.touch(0o666)
    path.chmod(0o666)
    RefusalLog(path).record(REFUSAL, run="", round_number=0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_a_server_sent_stays_on_its_line_and_is_cut(path):
    log = RefusalLog(path)
    entry = log.record(Refusal("unit", "x\n" * 10_000), run='"}\r\n\u2028{' * 500, round_number=1)
    assert (len(entry.reason), len(entry.run)) == (500, 200)
    assert len(path.read_text().splitlines()) == len(log.entries()) == 1


def test_a_line_that_a_crash_cut_is_left_out_and_its_place_taken(path):
    log = RefusalLog(path)
    first = log.record(REFUSAL, run="run-1", round_number=1)
    whole = path.read_bytes()
    for left in (b"{", whole[:-1]):
        path.write_bytes(whole + left)
        assert log.entries() == [first]
        second = log.record(REFUSAL, run="run-1", round_number=2)
        assert log.entries() == [first, second]
        path.write_bytes(left)
        assert log.entries() == []
        log.record(REFUSAL, run="run-1", round_number=3)
        assert [entry.round for entry in log.entries()] == [3]


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"null", b'{"round":1}', b"\xff"])
def test_a_damaged_line_is_told(path, line):
    log = RefusalLog(path)
    log.record(REFUSAL, run="run-1", round_number=1)
    with path.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(PrivacyError, match="line 2 is damaged"):
        log.entries()


def test_a_field_of_another_kind_is_damage(path):
    RefusalLog(path).record(REFUSAL, run="run-1", round_number=1)
    path.write_text(path.read_text().replace('"round":1', '"round":"1"'))
    with pytest.raises(PrivacyError, match="line 1 is damaged"):
        RefusalLog(path).entries()


def test_a_log_that_cannot_be_written_is_an_error(path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        RefusalLog(path).record(REFUSAL, run="run-1", round_number=1)


def test_two_processes_write_at_once_and_no_line_is_lost(path):
    code = """
import pathlib, sys
from fedglm.privacy.errors import Refusal
from fedglm.privacy.refusal_log import RefusalLog
for number in range(50):
    RefusalLog(pathlib.Path(sys.argv[1])).record(Refusal("unit", "why"), run=sys.argv[2], round_number=number)
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), run]) for run in ("a", "b")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    entries = RefusalLog(path).entries()
    for run in ("a", "b"):
        assert [entry.round for entry in entries if entry.run == run] == list(range(50))
