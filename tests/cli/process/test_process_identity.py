"""Which processes are ours, by their start and by a mark."""

import os
import subprocess
import sys
import time
from pathlib import Path

from fedglm.cli.process.process_identity import find_marked, read_identity

WAIT = [sys.executable, "-c", "print('up', flush=True); input()"]


def waiting(**variables: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        WAIT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **variables}, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def test_an_identity_is_boot_and_ticks_as_in_older_pid_files() -> None:
    boot, _, ticks = str(read_identity(os.getpid())).partition("/")
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    assert 0 < age < 24 * 3600


def test_each_process_has_its_own_and_the_dead_have_none() -> None:
    with waiting() as one:
        own = read_identity(one.pid)
        time.sleep(0.02)  # two ticks
        with waiting() as other:
            assert len({own, read_identity(other.pid), read_identity(os.getpid())}) == 3
        assert read_identity(one.pid) == own
        one.kill()
        while Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        assert read_identity(one.pid) is None, "nobody has asked how it ended, and yet it has"
    assert read_identity(one.pid) is None


def test_a_mark_is_the_whole_value_of_one_variable(tmp_path: Path) -> None:
    mark = str(tmp_path / "mit Leerzeichen = und Ümlaut")
    with waiting(MARK=mark) as ours, waiting(MARK=mark + "x"), waiting(OTHER=f"MARK={mark}"):
        assert find_marked("MARK", mark) == [ours.pid]
        ours.kill()
        ours.wait()
        assert find_marked("MARK", mark) == []


def test_the_asker_is_not_among_them() -> None:
    code = "from fedglm.cli.process.process_identity import find_marked; print(find_marked('MARK', 'asker'))"
    env = {**os.environ, "MARK": "asker"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
