"""Stopping and killing a run at any moment: nothing is left running, and --resume ends with the very same model."""

import os
import shutil
import signal
import time

import pytest
from command_line import Process, rows_of, soon, temporary_files, write_tiny

from fedglm.cli.terminal.progress import Progress
from fedglm.scenarios.scenario import Scenario
from fedglm.simulations.simulate import run_scenario

pytestmark = pytest.mark.usefixtures("unrendered")

LONGER = ("--rounds", "5", "--set", "training.local_steps=20")
STOPPED = "stopped by Ctrl-C; what was finished is kept, and --resume goes on"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that the others are held against: five rounds that take long enough to be hit."""
    home = tmp_path_factory.mktemp("undisturbed")
    toml = write_tiny(home)
    overrides = {"federation.rounds": 5, "training.local_steps": 20}
    with Progress(quiet=True) as nobody:
        scenario = Scenario.from_toml(toml.read_text(), overrides)
        summary = run_scenario(scenario, home / "run", engine="inline", callbacks=nobody)
    return toml, summary, rows_of(home / "run")


def simulate(undisturbed, folder, *options):
    return Process("simulate", undisturbed[0], *LONGER, "--out", folder, *options)


def check_whole(undisturbed, folder, result):
    """The run ended as if nothing had happened, each round once."""
    _, summary, rows = undisturbed
    assert result.json["model_sha256"] == summary["model_sha256"]
    found = rows_of(folder)
    assert [row["round"] for row in found] == [1, 2, 3, 4, 5]
    for key in ("loss", "accuracy", "uplink_bytes", "nodes_accepted", "nodes_rejected"):
        assert [row[key] for row in found] == [row[key] for row in rows], key
    assert temporary_files(folder) == []


def in_the_middle_of_round(number, folder):
    """The rounds before are on disk, and the next has begun."""
    before = folder / "checkpoint" / f"round-{number - 1:07d}.safetensors"
    return lambda: len(rows_of(folder)) == number - 1 and before.exists()


def check_stopped(process, result):
    assert result.code == 130
    assert result.out == ""
    assert result.err.splitlines()[-1] == STOPPED
    assert "Traceback" not in result.err
    assert "rror" not in result.err
    assert soon(lambda: process.descendants() == set())


def check_ctrl_c(undisturbed, folder):
    """A run is stopped in its second round: what is left are whole rounds."""
    with simulate(undisturbed, folder, "--json") as process:
        process.until(in_the_middle_of_round(2, folder))
        time.sleep(0.15)
        process.press_ctrl_c()
        result = process.finish(timeout=30)
        check_stopped(process, result)
        assert result.err.count("\n") == 1
    assert [row["round"] for row in rows_of(folder)] == list(range(1, len(rows_of(folder)) + 1))
    assert not (folder / "summary.json").exists()
    assert temporary_files(folder) == []


def test_ctrl_c_and_in_the_end_the_same_model(fedglm, undisturbed, tmp_path):
    """That workers end with a process that is killed is in `engines/`, and how a server goes on in `tests/server`."""
    folder = tmp_path / "run"
    check_ctrl_c(undisturbed, folder)
    # What is on the disk decides, not in which process the end is made.
    ended = fedglm("simulate", undisturbed[0], *LONGER, "--out", folder, "--resume", "--json")
    check_whole(undisturbed, folder, ended)


@pytest.mark.slow
def test_ctrl_c_and_kills_and_in_the_end_the_same_model(fedglm, undisturbed, tmp_path):
    folder = tmp_path / "run"
    check_ctrl_c(undisturbed, folder)
    with simulate(undisturbed, folder, "--resume") as process:
        process.until(lambda: len(rows_of(folder)) == 3)
        process.until(lambda: process.workers() != set())
        process.kill()
        assert soon(lambda: process.descendants() == set()), "workers outlive the process that was killed"
        process.finish()
    assert 3 <= len(rows_of(folder)) < 5
    # What is on the disk decides, not in which process the end is made.
    ended = fedglm("simulate", undisturbed[0], *LONGER, "--out", folder, "--resume", "--json")
    check_whole(undisturbed, folder, ended)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("workers", [1, 2])
def test_kills_at_many_moments(undisturbed, tmp_path, workers):
    """From the first file to the report, at moments that no round knows of."""
    folder = tmp_path / "run"
    moments = [
        lambda: folder.exists(),
        lambda: (folder / "scenario.toml").exists(),
        lambda: (folder / "checkpoint").exists(),
        lambda: (folder / "nodes").exists(),
        lambda: len(list(folder.glob("nodes/*/state.json"))) >= 1,
        lambda: len(list(folder.glob("nodes/*/pending_residual*.bin"))) >= 2,
        lambda: len(rows_of(folder)) >= 1,
        lambda: (folder / "checkpoint" / "round-0000002.safetensors").exists(),
        lambda: any(name.name.startswith(".") for name in folder.glob("nodes/*/*")) or len(rows_of(folder)) >= 3,
        lambda: len(rows_of(folder)) >= 4,
        lambda: any(name.name.startswith(".model") for name in folder.iterdir()) or (folder / "model").exists(),
        lambda: (folder / "model").exists(),
        lambda: (folder / "summary.json").exists(),
    ]
    for moment in moments:
        with simulate(undisturbed, folder, "--resume", "--workers", workers) as process:
            process.until(moment)
            process.kill()
            assert soon(lambda: process.descendants() == set())
            process.finish()
    with simulate(undisturbed, folder, "--resume", "--workers", workers, "--json") as process:
        check_whole(undisturbed, folder, process.finish())
    assert (folder / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.4, 1.0, 2.0, 3.0, 4.5, 6.0])
def test_ctrl_c_while_it_starts(undisturbed, tmp_path, delay):
    with simulate(undisturbed, tmp_path / "run") as process:
        time.sleep(delay)
        process.press_ctrl_c()
        check_stopped(process, process.finish(timeout=60))


@pytest.mark.slow
def test_ctrl_c_while_baselines_train(undisturbed, tmp_path):
    folder = tmp_path / "run"
    options = ("--set", 'evaluation.baselines=["alone", "pooled"]')
    with simulate(undisturbed, folder, *options) as process:
        process.until(lambda: (folder / "model").exists())
        process.until(lambda: process.workers() != set())
        process.press_ctrl_c()
        check_stopped(process, process.finish(timeout=60))
    with simulate(undisturbed, folder, *options, "--resume", "--json") as process:
        check_whole(undisturbed, folder, process.finish())


@pytest.mark.slow
def test_a_terminated_process_leaves_no_worker(undisturbed, tmp_path):
    folder = tmp_path / "run"
    with simulate(undisturbed, folder) as process:
        process.until(in_the_middle_of_round(2, folder))
        os.kill(process.pid, signal.SIGTERM)
        process.finish(timeout=60)
        assert soon(lambda: process.descendants() == set())
    with simulate(undisturbed, folder, "--resume", "--json") as process:
        check_whole(undisturbed, folder, process.finish())


@pytest.mark.slow
def test_ctrl_c_under_ray(undisturbed, tmp_path):
    folder = tmp_path / "run"
    with simulate(undisturbed, folder, "--engine", "ray") as process:
        process.until(in_the_middle_of_round(2, folder), timeout=240)
        process.press_ctrl_c()
        check_stopped(process, process.finish(timeout=120))
    # What one engine began, the other ends.
    with simulate(undisturbed, folder, "--resume", "--json") as process:
        check_whole(undisturbed, folder, process.finish())


@pytest.mark.slow
def test_a_kill_under_ray(undisturbed, tmp_path):
    folder = tmp_path / "run"
    with simulate(undisturbed, folder, "--engine", "ray") as process:
        process.until(in_the_middle_of_round(3, folder), timeout=240)
        process.kill()
        assert soon(lambda: process.descendants() == set(), timeout=60), "Ray outlives the process that was killed"
        process.finish()
    with simulate(undisturbed, folder, "--resume", "--json", "--engine", "ray") as process:
        check_whole(undisturbed, folder, process.finish())


def test_a_finished_run_is_given_again_as_it_is(fedglm, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    assert fedglm("simulate", finished.toml, "--out", finished.folder, "--resume", "--json").json == finished.summary
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")} == before


def test_resume_writes_the_page_that_a_finished_run_lacks(fedglm, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "report.html").unlink()
    assert fedglm("simulate", finished.toml, "--out", folder, "--resume", "--json").json == finished.summary
    assert (folder / "report.html").is_file()


def test_resume_sweeps_up_what_a_killed_process_was_writing(fedglm, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "summary.json").unlink()
    (folder / ".model.abcd_123" / "new").mkdir(parents=True)
    for name in (".rounds.jsonl.abcdefgh", "nodes/site-0/.state.json.01234567", ".model.abcd_123/new/config.json"):
        (folder / name).write_text("{")
    (folder / ".notes").write_text("somebody's own")
    assert fedglm("simulate", finished.toml, "--out", folder, "--resume", "--json").code == 0
    assert temporary_files(folder) == [folder / ".notes"]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(fedglm, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "summary.json").unlink()
    newest = folder / "checkpoint" / "round-0000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    summary = fedglm("simulate", finished.toml, "--out", folder, "--resume", "--json").json
    assert summary["model_sha256"] == finished.summary["model_sha256"]
    assert [row["round"] for row in rows_of(folder)] == [1, 2, 3]


def test_damaged_checkpoints_are_one_line(fedglm, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "summary.json").unlink()
    for path in (folder / "checkpoint").iterdir():
        path.write_bytes(b"\0" * 100)
    assert "no checkpoint" in fedglm("simulate", finished.toml, "--out", folder, "--resume").line()
