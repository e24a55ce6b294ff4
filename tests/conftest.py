"""Fixtures that several files need: the command in this process, a tiny scenario, and one finished run of it."""

import fcntl
import os
import pickle
import shutil

import pytest
from command_line import Finished, run_here, write_tiny
from hypothesis import settings

# The first call of a compiled loop compiles it, which takes longer than hypothesis would wait.
settings.register_profile("fedglm", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=300)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fedglm"))


@pytest.fixture(scope="session")
def fedglm():
    """The command, run in this process."""
    return run_here


@pytest.fixture(scope="module")
def unsynced():
    """Nothing waits for the disk: what must survive a power cut is tested elsewhere, and here it would be much time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def unrendered():
    """Pictures are composed and not rendered, for tests of a page's words: rendering is most of a page's time."""

    def render(_figure, target, **_options):
        target.write('<svg viewBox="0 0 1 1"></svg>')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", render)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three sites with its logs, sealed, for a whole file of tests: `audited_run.make_run`."""
    from audited_run import make_run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        return make_run(tmp_path_factory.mktemp("audited") / "run")


@pytest.fixture
def copy(run, tmp_path):
    """A copy of that run, to be changed."""
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def tiny(tmp_path):
    """Path of a scenario that trains in a second."""
    return write_tiny(tmp_path)


@pytest.fixture
def plain(tmp_path):
    """A scenario that names no data but a source, which --data replaces."""
    path = tmp_path / "plain.toml"
    path.write_text('name = "plain"\n[data]\nsource = "pydoc"\n[training]\nlocal_steps = 3\nbatch_size = 4\n')
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The undisturbed run of the tiny scenario, by a real process, with --json.

    It is made once, however many processes test; each has a copy, for a run folder is for one process at a time.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    kept = shared / "finished.pickle"
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            home = shared / "finished"
            home.mkdir()
            kept.write_bytes(pickle.dumps(Finished(home)))
    run = pickle.loads(kept.read_bytes())  # noqa: S301 - written by a process of this very run
    run.folder = shutil.copytree(run.folder, own / "finished-run")
    return run
