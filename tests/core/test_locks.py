"""A lock that one process holds, and that its death frees."""

import multiprocessing
import signal
import threading
import time

from fedglm.core.locks import hold_lock


def hold(path, ready):
    with hold_lock(path) as alone:
        ready.send(alone)
        threading.Event().wait()


def test_one_holds_it_at_a_time_and_a_killed_one_holds_it_no_longer(tmp_path):
    path = tmp_path / "new" / "lock"
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=hold, args=(path, there), daemon=True)
    process.start()
    assert here.recv()
    with hold_lock(path) as alone:
        assert not alone
    process.kill()
    with hold_lock(path, patience_s=10) as alone:
        assert alone
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_who_waits_gets_it_when_it_is_let_go(tmp_path):
    first = hold_lock(tmp_path / "lock")
    assert first.__enter__()
    threading.Timer(0.2, lambda: first.__exit__(None, None, None)).start()
    began = time.monotonic()
    with hold_lock(tmp_path / "lock", patience_s=10) as alone:
        assert alone
    assert time.monotonic() - began >= 0.15
