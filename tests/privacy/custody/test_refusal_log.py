import json
import os
import stat
import subprocess
import sys
import time
from datetime import datetime, timedelta

import pytest

from fedglm.core.files import StorageError
from fedglm.privacy.custody import refusal_log
from fedglm.privacy.custody.refusal_log import LOG_FULL_RULE, RefusalCount, RefusalLog
from fedglm.privacy.errors import PrivacyError, Refusal

REFUSAL = Refusal("noise-multiplier", "noise multiplier 0.5, and noise_multiplier_at_least is 1")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "node" / "refusals.jsonl"


@pytest.fixture
def room(monkeypatch):
    """For a few lines only."""
    monkeypatch.setattr(refusal_log, "MAX_BYTES", 500)


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


def test_processes_write_at_once_and_nothing_is_lost(path):
    code = """
import pathlib, sys
from fedglm.privacy.custody import refusal_log
from fedglm.privacy.errors import Refusal
refusal_log.MAX_BYTES = 10_000
sys.stdin.read(1)
for number in range(100):
    refusal_log.RefusalLog(pathlib.Path(sys.argv[1])).record(Refusal("unit", ""), run=sys.argv[2], round_number=number)
"""
    command = [sys.executable, "-c", code, str(path)]
    writers = [subprocess.Popen([*command, run], stdin=subprocess.PIPE) for run in "abc"]
    for writer in writers:
        writer.stdin.write(b"x")
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    log = RefusalLog(path)
    lines = [entry for entry in log.entries() if entry.rule != LOG_FULL_RULE]
    assert len(lines) + log.counts()["unit"].count == 300
    assert len(log.entries()) == len(lines) + 1
    for run in "abc":
        rounds = [entry.round for entry in lines if entry.run == run]
        assert rounds == list(range(len(rounds)))


# A server that asks again and again.


@pytest.mark.usefixtures("room")
def test_a_full_log_says_so_and_goes_on_counting_by_rule(path):
    log = RefusalLog(path)
    first = [log.record(REFUSAL, run="run-1", round_number=number) for number in range(4)]
    assert log.entries() == first
    assert log.counts() == {}
    lines = path.read_bytes()
    later = [log.record(REFUSAL, run="run-1", round_number=number) for number in range(4, 100)]
    other = log.record(Refusal("unit", "why"), run="run-2", round_number=0)
    *kept, last = log.entries()
    assert kept == first
    assert last.rule == LOG_FULL_RULE
    assert "refusals.counts.json" in last.reason
    assert path.read_bytes().startswith(lines)
    assert log.counts() == RefusalLog(path).counts()
    assert log.counts() == {
        "noise-multiplier": RefusalCount(count=96, first=later[0], last=later[-1]),
        "unit": RefusalCount(count=1, first=other, last=other),
    }
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


@pytest.mark.usefixtures("room")
def test_a_summary_counts_lines_and_counts_together(path):
    log = RefusalLog(path)
    assert (log.summary().by_rule.total(), log.summary().last) == (0, None)
    one = log.record(Refusal("unit", "why"), run="run-1", round_number=0)
    assert (dict(log.summary().by_rule), log.summary().last) == ({"unit": 1}, one)
    while not log.counts():
        last = log.record(REFUSAL, run="run-1", round_number=1)
    lines = sum(entry.rule == REFUSAL.rule for entry in log.entries())
    assert log.summary().by_rule == {"unit": 1, REFUSAL.rule: lines + 1, LOG_FULL_RULE: 1}
    assert log.summary().last.time == last.time


@pytest.mark.usefixtures("room")
def test_no_server_fills_the_disk(path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    log = RefusalLog(path)
    for number in range(300):
        rule = ("unit", "plan", "size")[number % 3]
        log.record(Refusal(rule, "\U0001f40d" * 10_000), run='\\"' * 10_000, round_number=number)
    assert sum(file.stat().st_size for file in path.parent.iterdir()) < 500 + 3_000 + 1_000 + 3 * 2 * 3_000
    assert sum(count.count for count in log.counts().values()) + len(log.entries()) - 1 == 300


@pytest.mark.usefixtures("room")
def test_a_full_log_stays_full_though_a_short_line_would_fit(path):
    log = RefusalLog(path)
    while not log.counts():
        log.record(REFUSAL, run="run-1", round_number=1)
    lines = path.read_bytes()
    log.record(Refusal("a", ""), run="", round_number=0)
    assert path.read_bytes() == lines
    assert log.counts()["a"].count == 1


@pytest.mark.usefixtures("room")
def test_both_files_moved_away_make_room(path):
    log = RefusalLog(path)
    while not log.counts():
        log.record(REFUSAL, run="run-1", round_number=1)
    for file in path.parent.iterdir():
        file.unlink()
    entry = log.record(REFUSAL, run="run-1", round_number=2)
    assert log.entries() == [entry]
    assert log.counts() == {}


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"unit":{}}', b'{"unit":null}', b'{"unit": 1}', b"\xff"])
def test_damaged_counts_are_told_and_never_begun_anew(path, damage):
    log = RefusalLog(path)
    while not log.counts():
        log.record(REFUSAL, run="run-1", round_number=1)
    file = path.with_name("refusals.counts.json")
    whole = file.read_bytes()
    for content in (damage, whole.replace(b'"count":1', b'"count":0'), whole.replace(b'"round":1', b'"round":""')):
        assert content != whole
        file.write_bytes(content)
        for ask in (log.counts, lambda: log.record(REFUSAL, run="run-1", round_number=1)):
            with pytest.raises(PrivacyError, match=r"refusals\.counts\.json is damaged"):
                ask()
        assert file.read_bytes() == content


def test_a_writer_killed_at_any_moment_loses_no_refusal_that_it_told_of(path):
    code = """
import itertools, pathlib, sys
from fedglm.privacy.custody import refusal_log
from fedglm.privacy.errors import Refusal
refusal_log.MAX_BYTES = 500
log = refusal_log.RefusalLog(pathlib.Path(sys.argv[1]))
for number in itertools.count():
    log.record(Refusal("unit", "why"), run="run", round_number=number)
    print(number, flush=True)
"""
    log, told, kills = RefusalLog(path), 0, 15
    for kill in range(kills):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        begun = [writer.stdout.readline() for _ in range(5)]
        time.sleep(kill / 2000)  # in the middle of something, now of this, now of that
        writer.kill()
        told += len(begun) + writer.stdout.read().count("\n")
        writer.wait(60)
        writer.stdout.close()
        lines = [entry for entry in log.entries() if entry.rule != LOG_FULL_RULE]
        kept = len(lines) + sum(count.count for count in log.counts().values())
        assert told <= kept <= told + kill + 1
    assert log.counts()
