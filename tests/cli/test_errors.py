"""What a user can get wrong: one clear line, exit code 2, and nothing left behind that is in a later run's way."""

import errno
import fcntl
import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from command_line import Process, rows_of, temporary_files

from fedglm.run_folder.folder import RunFolder, RunFolderError

pytestmark = pytest.mark.usefixtures("unrendered")


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def notes(path, *, labels=("a", "b"), empty=""):
    """Texts of three sites, four units each; the site named `empty` holds blank ones."""
    rows = [
        {
            "text": " " if site == empty else f"note {unit} of the {site} ward: nothing to report today, as before",
            "kind": labels[unit % len(labels)],
            "who": f"{site}-{unit}",
            "site": site,
        }
        for site in ("north", "south", "west")
        for unit in range(4)
    ]
    return jsonl(path, rows)


OPTIONS = [
    (["--codec", "topk-sing"], "did you mean topk-sign"),
    (["--set", "training.local_stebs=3"], "did you mean local_steps?"),
    (["--set", "trainings.local_steps=3"], "did you mean training?"),
    (["--set", "local_steps"], "--set takes section.key=value, not 'local_steps'"),
    (["--density", "0"], "update.density = 0.0: input should be greater than 0"),
    (["--density", "2"], "update.density = 2.0: input should be less than or equal to 1"),
    (["--density", "much"], "'much' is not a valid float"),
    (["--density", "nan"], "update.density = nan"),
    (["--codec", "dense-fp32", "--density", "0.1"], "dense-fp32 sends every coordinate: leave --density out"),
    (["--epsilon", "-3"], "greater than or equal to 0.05"),
    (["--epsilon", "3", "--no-dp"], "exclude each other"),
    (["--nodes", "0"], "federation.nodes = 0: input should be greater than or equal to 1"),
    (["--nodes", "many"], "'many' is not a valid int"),
    (["--nodes", "100000"], "nodes"),
    (["--rounds", "0"], "federation.rounds = 0"),
    (["--seed", "-1"], "federation.seed = -1"),
    (["--workers", "0"], "--workers"),
    (["--engine", "rey"], "there is no engine 'rey': choose inline or ray"),
    (["--bogus"], "--bogus"),
    (["--set", "training.precision=fp16"], "precision fp16 needs a GPU"),
    (["--set", "model.preset=glm-1m"], "glm-0.1m"),
    (["--set", "model.path=/nowhere"], "/nowhere: no local model folder"),
    (["--set", "data.source=breastcancer"], "did you mean 'breast-cancer'"),
    (["--set", "data.source=breast-cancer", "--label-field", "x"], "leave label_field out"),
]


@pytest.mark.parametrize(("options", "said"), OPTIONS, ids=[" ".join(options) for options, _ in OPTIONS])
def test_a_wrong_option_is_one_line(fedglm, tiny, tmp_path, options, said):
    out = tmp_path / "new" / "run"
    assert said in fedglm("simulate", tiny, "--out", out, *options).line()
    assert not out.exists()


def test_a_wrong_name_is_one_line(fedglm, tmp_path):
    assert "did you mean hospital" in fedglm("simulate", "hopsital").line()
    assert "did you mean hospital" in fedglm("simulate", "--show", "hopsital").line()
    assert "cannot read the scenario" in fedglm("simulate", tmp_path / "none.toml").line()
    assert "cannot read the scenario" in fedglm("simulate", tmp_path.with_suffix(".toml")).line()
    assert "No such command 'simulat'" in fedglm("simulat").line()
    (tmp_path / "broken.toml").write_text("name = \n")
    assert "is not TOML" in fedglm("simulate", tmp_path / "broken.toml").line()


def test_without_a_command_there_is_help_and_no_empty_error(fedglm):
    result = fedglm()
    assert (result.code, result.err) == (2, "")
    assert "simulate" in result.out


def test_resume_needs_a_folder(fedglm, tiny):
    assert "--resume needs --out" in fedglm("simulate", tiny, "--resume").line()


DATA = [
    ("missing.jsonl", None, [], "missing.jsonl: there is no such file"),
    ("empty.jsonl", "", [], "the file holds no rows"),
    ("odd.xml", "<a/>", [], "the name must end in .jsonl"),
    ("broken.jsonl", '{"text": "x"}\n{"text": \n', [], "line 2: not JSON"),
    ("latin.csv", "text\nÄrzte\n".encode("latin-1"), [], "line 2: not UTF-8"),
    ("cut.csv.gz", gzip.compress(b"text\nx\n" * 99)[:30], [], "damaged or cut off"),
    ("other.csv", "txet,who\nx,y\n", [], "no field 'text'; did you mean 'txet'?"),
    ("fields.csv", "text,who\nx,y\n", ["--label-field", "kind"], "no field 'kind'; there are: text, who"),
    ("ragged.csv", "text,who\nx,y\nx,y,z\n", [], "line 3: 3 values for 2 fields"),
    ("blank.csv", "text,who\n ,y\n", [], "no row holds any text"),
]


@pytest.mark.parametrize(("name", "content", "options", "said"), DATA, ids=[name for name, *_ in DATA])
def test_data_that_cannot_be_used_are_one_line(fedglm, plain, tmp_path, name, content, options, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    out = tmp_path / "run"
    line = fedglm("simulate", plain, "--data", path, "--out", out, *options).line()
    assert said in line
    assert name in line
    assert not out.exists()


def test_sites_that_cannot_take_part_are_one_line(fedglm, plain, tmp_path):
    out = tmp_path / "run"
    fields = ("--site-field", "site", "--unit-field", "who", "--out", out)
    bad = notes(tmp_path / "empty.jsonl", empty="south")
    assert "site 'south' is empty" in fedglm("simulate", plain, "--data", bad, *fields).line()
    bad = notes(tmp_path / "one-class.jsonl", labels=("a",))
    line = fedglm("simulate", plain, "--data", bad, "--label-field", "kind", *fields).line()
    assert "all rows are of one class ('a')" in line
    good = notes(tmp_path / "good.jsonl")
    line = fedglm("simulate", plain, "--data", good, "--nodes", "5", *fields).line()
    assert "5 nodes were asked for and 'site' names 3 sites" in line
    line = fedglm("simulate", plain, "--data", good, "--set", "model.max_length=16", *fields).line()
    assert "sequences of 128 tokens are longer than glm-0.1m takes (16)" in line
    lonely = jsonl(tmp_path / "lonely.jsonl", [{"text": "some words", "site": name, "who": name} for name in "abc"])
    assert "unit" in fedglm("simulate", plain, "--data", lonely, *fields).line()
    assert "need two units each" in fedglm("simulate", plain, "--data", lonely, "--out", out).line()
    assert not out.exists()


def test_a_failed_start_does_not_stand_in_the_way_of_the_next(fedglm, tiny, tmp_path):
    out = tmp_path / "run"
    options = ("--out", out, "--rounds", "1", "--json")
    fedglm("simulate", tiny, *options, "--data", "missing.csv").line()
    fedglm("simulate", tiny, *options, "--data", "missing.csv", "--resume").line()
    out.mkdir()
    fedglm("simulate", tiny, *options, "--data", "missing.csv").line()
    assert list(out.iterdir()) == []
    # --resume in a folder without a run begins one.
    assert fedglm("simulate", tiny, *options, "--resume").json["rounds"] == 1


def test_a_real_process_shows_no_traceback_either(tiny, tmp_path):
    # In this process a worker's words would go unseen.
    with Process("simulate", tiny, "--data", tmp_path / "missing.csv", "--out", tmp_path / "run") as process:
        result = process.finish()
        assert "there is no such file" in result.line()
        assert result.err.count("\n") == 1
        assert process.descendants() == set()


def test_a_folder_that_holds_something_else_is_refused(fedglm, finished, tiny, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    assert "already holds a run: add --resume" in fedglm("simulate", tiny, "--out", finished.folder).line()
    line = fedglm("simulate", tiny, "--out", finished.folder, "--resume", "--seed", "8").line()
    assert "was begun with other settings" in line
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")} == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    for resume in ([], ["--resume"]):
        line = fedglm("simulate", tiny, "--out", other, *resume).line()
        assert "holds files that are no run" in line
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    assert "is a file" in fedglm("simulate", tiny, "--out", other / "thesis.txt").line()
    assert "cannot write" in fedglm("simulate", tiny, "--out", other / "thesis.txt" / "run").line()


def test_a_folder_in_which_a_process_is_at_work_is_refused(fedglm, finished, tiny, tmp_path):
    folder = tmp_path / "busy"
    shutil.copytree(finished.folder, folder)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = fedglm("simulate", finished.toml, "--out", folder, "--resume").line()
    assert "another process is running" in line
    # One that is still reading its data has no scenario.toml yet.
    young = tmp_path / "young"
    young.mkdir()
    with (young / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process is running" in fedglm("simulate", tiny, "--out", young).line()
        assert (young / ".lock").exists()


def test_a_process_at_work_is_told_of_before_anything_else(tmp_path):
    run = RunFolder(tmp_path / "run")
    with run.claimed("a", resume=False):
        run.begin("a")
        with pytest.raises(RunFolderError, match="another process"), RunFolder(run.path).claimed("b", resume=False):
            pass
    assert [path.name for path in run.path.iterdir()] == ["scenario.toml"]
    (run.path / ".rounds.jsonl.abcdefgh").touch()
    with pytest.raises(RunFolderError, match="already holds a run"), run.claimed("a", resume=False):
        pass
    with pytest.raises(RunFolderError, match="other settings"), run.claimed("b", resume=True):
        pass
    assert sorted(path.name for path in run.path.iterdir()) == [".rounds.jsonl.abcdefgh", "scenario.toml"]


def test_a_folder_that_cannot_be_written_is_one_line(fedglm, tiny, small_disk):
    small_disk.mount("remount,ro")  # permissions would not stop root
    line = fedglm("simulate", tiny, "--out", small_disk.folder / "run").line()
    assert line == f"fedglm: cannot write {small_disk.folder / 'run'}: {os.strerror(errno.EROFS)}"


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_a_folder_without_permission_is_one_line(fedglm, tiny, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    line = fedglm("simulate", tiny, "--out", locked / "run").line()
    assert line == f"fedglm: cannot write {locked / 'run'}: {os.strerror(errno.EACCES)}"
    assert list(locked.iterdir()) == []


# A full disk.


class SmallDisk:
    """A file system in memory of some KiB that can be enlarged."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.mount("size=64m")

    def mount(self, options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")

    def resize(self, kib):
        self.mount(f"remount,size={kib}k")

    def close(self):
        subprocess.run(["umount", "-l", self.folder], check=True)


@pytest.fixture
def small_disk(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    disk.close()


def check_full(result, disk, folder):
    line = result.line()
    assert "the disk is full" in line
    assert "--resume" in line
    assert temporary_files(folder) == []
    assert [path for path in Path(disk.folder).iterdir() if path != folder] == []
    rows = rows_of(folder)
    assert [row["round"] for row in rows] == list(range(1, len(rows) + 1))
    return line


# KiB of the disk, and where it fills up. A site's policy and ledger take 30 KiB, a vector of the model 300, a
# checkpoint one or two of them, a node's state up to three, and more while the new one is written beside the old.
SIZES = [
    pytest.param(4, "/server.key", marks=pytest.mark.slow),
    (60, "/custody/"),
    pytest.param(200, "/checkpoint/", marks=pytest.mark.slow),
    (1000, "/nodes/"),
    pytest.param(2600, "", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("size", "place"), SIZES)
def test_a_full_disk_is_one_line_and_the_run_goes_on_to_the_same_bits(fedglm, finished, small_disk, size, place):
    folder = small_disk.folder / "run"
    small_disk.resize(size)
    options = ("simulate", finished.toml, "--out", folder, "--workers", "1", "--json")
    assert place in check_full(fedglm(*options), small_disk, folder)
    small_disk.resize(64 * 1024)
    assert fedglm(*options, "--resume").json["model_sha256"] == finished.summary["model_sha256"]
    assert [row["loss"] for row in rows_of(folder)] == [row["loss"] for row in finished.rows]


def test_a_disk_that_fills_up_with_the_model_is_one_line(fedglm, finished, small_disk):
    folder = small_disk.folder / "run"
    shutil.copytree(finished.folder, folder)
    shutil.rmtree(folder / "model")
    for name in ("summary.json", "report.html"):
        (folder / name).unlink()
    used = shutil.disk_usage(folder).used // 1024
    small_disk.resize(used + 100)
    options = ("simulate", finished.toml, "--out", folder, "--json", "--resume")
    assert "/model" in check_full(fedglm(*options), small_disk, folder)
    assert not (folder / "model").exists()
    assert "/model" in check_full(fedglm(*options), small_disk, folder)
    small_disk.resize(64 * 1024)
    assert fedglm(*options).json["model_sha256"] == finished.summary["model_sha256"]
    assert (folder / "report.html").exists()


def test_a_disk_that_is_full_from_the_start_is_left_as_it_was(fedglm, tiny, small_disk):
    small_disk.resize(64)
    (small_disk.folder / "ballast").write_bytes(bytes(64 * 1024))
    line = fedglm("simulate", tiny, "--out", small_disk.folder / "run").line()
    assert "the disk is full" in line
    assert [path.name for path in small_disk.folder.iterdir()] == ["ballast"]
