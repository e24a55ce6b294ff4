"""`fedglm watch`: what a run's folder says while the run goes on, to people and to machines."""

import contextlib
import json
import threading
import time

import pytest
from runs_under_way import Going, row

from fedglm.cli import watch as command
from fedglm.run_folder.progress import read_view
from fedglm.server.deployment.run_log import RunLog


@pytest.fixture
def going(tmp_path):
    return Going(tmp_path / "trial")


@pytest.fixture
def watch(fedglm):
    return lambda folder, *options: fedglm("watch", folder, *options)


def test_a_run_before_its_first_round(going, watch):
    found = watch(going.folder, "--json").json
    assert (found["state"], found["rounds"], found["rounds_done"], found["ratio"]) == ("running", 10, 0, None)
    assert "0 of 10 rounds" in watch(going.folder, "--once").out


def test_each_site_s_last_answer_and_why_it_was_rejected(going, watch):
    going.round()
    going.round(fault="the norm is 12, above 10")
    going.log.round_started(3, 2)
    going.log.reply_taken(3, "a", None)
    found = watch(going.folder, "--json").json
    assert (found["round"], found["sampled"], found["replies"]) == (3, 2, 1)
    assert (found["accepted"], found["rejected"]) == (3, 1)
    a, b = found["sites"]
    assert (a["name"], a["answers"], a["rejected"], a["last_round"], a["last_fault"]) == ("a", 3, 0, 3, None)
    assert (b["answers"], b["rejected"], b["last_round"], b["last_fault"]) == (1, 1, 2, "the norm is 12, above 10")
    shown = watch(going.folder, "--once").out
    assert "round 3: 1 of 2 have answered" in shown
    assert "the norm is 12, above 10" in shown


def test_bytes_are_those_of_all_rounds(going, watch):
    going.round()
    going.round()
    found = watch(going.folder, "--json").json
    assert [found[f"{way}_bytes"] for way in ("uplink", "downlink", "dense_uplink", "dense_downlink")] == [
        400,
        800,
        40_000,
        40_000,
    ]
    assert found["ratio"] == 0.015
    assert found["phases_s"].keys() == {"first-answer", "other-answers", "closing"}
    shown = watch(going.folder, "--once").out
    assert "1.50%" in shown
    assert "last round 2.0 s" in shown


def test_a_round_that_is_begun_again_counts_once(going):
    going.round()
    going.log.round_started(2, 2)
    going.log.reply_taken(2, "a", None)
    again = RunLog(going.folder)  # the server's process was killed
    again.resumed(going.rows)
    going.round()
    view = read_view(going.folder)
    assert {name: site.answers for name, site in view.sites.items()} == {"a": 2, "b": 2}
    assert view.round is None


def test_nodes_that_take_no_part_are_shown_with_the_reason(going, watch):
    going.log.plan_refused(7, "refused by rule code: install the server's version")
    shown = watch(going.folder, "--once").out
    assert "refuses the plan" in shown
    assert "rule code" in shown
    for number in range(12):
        going.log.rejected(10**18 + number, f"no site is enrolled under the name 'x{number}'")
    found = watch(going.folder, "--json").json
    assert (len(found["turned_away"]), found["refused"][0]["node"]) == (12, "7")
    shown = watch(going.folder, "--once").out
    assert "13 in all, the latest" in shown
    assert "'x11'" in shown
    assert "'x0'" not in shown


def test_it_says_whom_a_round_waits_for_and_who_is_away_since_when(going, watch):
    since = time.time() - 300
    going.log.round_started(1, 4)
    going.log.sites_asked(1, ["a", "b", "c", "d"])
    going.log.reply_taken(1, "a", None)
    going.log.presence_changed(1, "b", "offline", since)
    found = watch(going.folder, "--json").json
    assert found["awaited"] == ["b", "c", "d"]
    assert [(site["name"], site["absent"]) for site in found["offline"]] == [("b", False)]
    going.log.presence_changed(1, "b", "absent", since)
    going.log.site_revoked(1, "d", "its keys were revoked")
    found = watch(going.folder, "--json").json
    assert found["awaited"] == ["c"]
    assert [(site["name"], site["absent"]) for site in found["offline"]] == [("b", True)]
    assert found["offline"][0]["since"].startswith(time.strftime("%Y-%m-%dT%H:%M", time.gmtime(since)))
    assert [(site["name"], site["reason"]) for site in found["revoked"]] == [("d", "its keys were revoked")]
    shown = watch(going.folder, "--once").out
    assert "waits for c" in [line.strip() for line in shown.splitlines()]
    assert "absent, rounds go on without: b (since 5 min ago)" in shown
    assert "revoked: d (0 s ago)" in shown
    going.rows.append(row(1, nodes_accepted=2, nodes_sampled=4, absent=["b"], revoked=["d"]))
    going.log.round_done(going.rows)
    going.log.presence_changed(2, "b", "online", time.time())
    found = watch(going.folder, "--json").json
    assert (found["awaited"], found["offline"], found["absences"], found["rejected"]) == ([], [], 1, 0)
    assert {site["name"]: site["absent"] for site in found["sites"]} == {"a": 0, "b": 1, "c": 0, "d": 0}
    going.log.resumed(going.rows)
    going.log.round_started(2, 4)
    going.log.sites_asked(2, ["a", "b", "c", "d"])  # d was enrolled under new keys
    assert watch(going.folder, "--json").json["revoked"] == []


def test_a_site_whose_name_is_known_is_shown_by_it(going, watch):
    going.log.plan_refused(10**18, "refused by rule codecs", "berlin")
    going.log.plan_refused(10**18 + 1, "refused by rule steps", "berlin")
    going.log.rejected(10**18 + 2, "another layout", "bonn")
    found = watch(going.folder, "--json").json
    assert [(entry["site"], entry["reason"]) for entry in found["refused"]] == [("berlin", "refused by rule steps")]
    assert [entry["site"] for entry in found["turned_away"]] == ["bonn"]
    shown = watch(going.folder, "--once").out
    assert "berlin" in shown
    assert "bonn" in shown
    assert "1000000" not in shown


def test_what_a_node_writes_steers_no_terminal_and_breaks_no_table(going, watch):
    nasty = "\x1b[2J\x1b]0;owned\x07[red]bold[/red]\n" + "long " * 200
    going.round(fault=nasty)
    going.log.rejected(1, nasty)
    shown = watch(going.folder, "--once").out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[red]bold[/red]" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert "\x1b" not in json.dumps(watch(going.folder, "--json").json, ensure_ascii=False)


def test_many_sites_fit_a_hundred_columns(going, watch):
    going.log.round_started(1, 40)
    for number in range(40):
        going.log.reply_taken(1, f"{number:02}-{'x' * 61}", "why " * 50 if number % 3 == 0 else None)
    shown = watch(going.folder, "--once").out
    assert max(map(len, shown.splitlines())) <= 100
    assert all(f"{number:02}-" in shown for number in range(40))


def test_how_a_run_ends(going, watch):
    going.round()
    going.log.failed(OSError("the disk is full"), final=False)
    assert watch(going.folder, "--json").json["state"] == "lost"
    assert "--resume" in watch(going.folder, "--once").out
    RunLog(going.folder).failed(OSError("nobody is enrolled"), final=True)  # the next attempt
    found = watch(going.folder, "--json").json
    assert (found["state"], found["failure"]) == ("failed", "nobody is enrolled")
    RunLog(going.folder).finished("ab" * 32, going.rows)
    found = watch(going.folder, "--json").json
    assert (found["state"], found["failure"], found["model_sha256"]) == ("done", None, "ab" * 32)
    assert "model abababababababab" in watch(going.folder).out  # without --once it ends with the run


@contextlib.contextmanager
def finishing(going, *, pause_s):
    """Three more rounds and the end come while the block runs."""

    def rest():
        for _ in range(3):
            time.sleep(pause_s)
            going.round()
        going.log.finished("cd" * 32, going.rows)

    thread = threading.Thread(target=rest)
    thread.start()
    yield
    thread.join()


def test_it_goes_along_until_the_run_is_done(going, watch, monkeypatch):
    monkeypatch.setattr(command, "_POLL_S", 0.02)

    with finishing(going, pause_s=0.1):
        result = watch(going.folder)
    assert result.code == 0
    assert "3 of 10 rounds" in result.out
    assert "done" in result.out


def test_a_line_that_is_not_finished_or_damaged_is_left_out(going, watch):
    going.round()
    with (going.folder / "events.jsonl").open("a") as file:
        file.write('\0\0\0\n[1]\n{"time": "never", "event": "round"}\n{"time": "2027-01-04T10:00:00+00:00", "ev')
    found = watch(going.folder, "--json").json
    assert (found["rounds_done"], found["unreadable_lines"]) == (1, 2)
    assert "2 lines of its files cannot be read" in watch(going.folder, "--once").out


def test_a_run_that_diverged_is_json_all_the_same(tmp_path, watch):
    (tmp_path / "rounds.jsonl").write_text('{"round": 1, "loss": NaN, "perplexity": Infinity, "wall_s": 1.0}\n')
    found = watch(tmp_path, "--json").json
    assert (found["loss"], found["metric"], found["metric_value"]) == (None, "perplexity", None)
    assert "loss -" in watch(tmp_path, "--once").out


def test_a_simulation_s_folder(finished, watch):
    found = watch(finished.folder, "--json").json
    assert (found["state"], found["rounds"], found["rounds_done"]) == ("done", 3, 3)
    assert found["loss"] == finished.rows[-1]["loss"]
    assert found["uplink_bytes"] == finished.summary["uplink_bytes"]
    assert found["model_sha256"] == finished.summary["model_sha256"]
    shown = watch(finished.folder, "--once").out
    assert f"loss {finished.rows[-1]['loss']:.4f}, accuracy" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_a_folder_without_a_run_is_named(tmp_path, watch):
    assert f"{tmp_path} holds no run" in watch(tmp_path).line()


def test_to_a_pipe_it_writes_a_frame_a_round(going, watch, monkeypatch):
    monkeypatch.setattr(command, "_POLL_S", 0.02)

    with finishing(going, pause_s=0.2):
        said = watch(going.folder).out
    assert said.count("rounds") >= 3
    assert said.endswith("\n")
