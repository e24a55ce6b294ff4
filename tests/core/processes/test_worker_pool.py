"""Work in pieces: by processes of its own, which take nothing from those that a simulation starts."""

import subprocess
import sys

from fedglm.core.processes.worker_pool import map_in_processes

AFTERWARDS = """
import multiprocessing, os, sys
from operator import add
from fedglm.core.processes.worker_pool import map_in_processes

def has_loaded(pipe):
    pipe.send("colorsys" in sys.modules)

if __name__ == "__main__":
    print(list(map_in_processes(add, [(1, 2), (3, 4), (5, 6)])))
    multiprocessing.set_forkserver_preload(["colorsys"])
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.get_context("forkserver").Process(target=has_loaded, args=(theirs,)).start()
    print(ours.recv())
"""


def test_a_simulation_s_workers_start_as_quickly_afterwards(tmp_path):
    """A process has one fork server; whoever starts it first decides what the workers of all find loaded."""
    (tmp_path / "afterwards.py").write_text(AFTERWARDS)
    done = subprocess.run([sys.executable, tmp_path / "afterwards.py"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[3, 7, 11]\nTrue\n", "")


UNGUARDED = """
from operator import add
from fedglm.core.processes.worker_pool import map_in_processes
print(list(map_in_processes(add, [(1, 2), (3, 4)])))
"""


def test_a_script_is_not_run_again_by_each_process(tmp_path):
    (tmp_path / "unguarded.py").write_text(UNGUARDED)
    done = subprocess.run([sys.executable, tmp_path / "unguarded.py"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[3, 7]\n", "")


OWN = """
from fedglm.core.processes.worker_pool import map_in_processes

def double(number):
    return 2 * number

if __name__ == "__main__":
    print(list(map_in_processes(double, [(1,), (2,)])))
"""


def test_work_of_the_script_itself_is_found_there(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    done = subprocess.run([sys.executable, tmp_path / "own.py"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[2, 4]\n", "")


def test_one_piece_alone_needs_no_other_process():
    assert list(map_in_processes(lambda: "no process could be sent this", [()])) == ["no process could be sent this"]
    assert list(map_in_processes(len, [])) == []
