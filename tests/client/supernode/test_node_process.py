"""A node's process does not outlive one of its threads, nor the process that started it."""

import subprocess
import sys

THREAD = """
import threading, time
from fedglm.cli.client import node
threading.excepthook = node._end_with_thread
def fail():
    raise {error}
threading.Thread(target=fail, name="link").start()
time.sleep({seconds})
"""


def run(error, seconds):
    code = THREAD.format(error=error, seconds=seconds)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


def test_a_node_ends_with_a_thread_that_fails():
    done = run("ValueError('a bug')", 60)
    assert done.returncode == 1
    assert "the node ends, for its thread link has failed" in done.stderr
    assert "a bug" in done.stderr


def test_a_thread_that_ends_on_purpose_ends_nothing():
    assert run("SystemExit", 0).returncode == 0
