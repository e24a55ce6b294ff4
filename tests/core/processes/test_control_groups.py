"""What a process may use, by its control groups."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedglm.core.processes.control_groups import (
    _read_core_limits,
    _read_memory_limits,
    read_core_limit,
    read_memory_limit,
)


def test_the_limit_is_the_least_of_the_groups_around(tmp_path: Path) -> None:
    mine, groups = tmp_path / "cgroup", tmp_path / "groups"
    (groups / "a" / "b").mkdir(parents=True)
    (groups / "memory" / "c").mkdir(parents=True)
    mine.write_text("0::/a/b\n4:cpu,memory:/c\n2:cpuset:/\n")
    (groups / "a" / "b" / "memory.max").write_text("max\n")
    (groups / "a" / "memory.max").write_text("1000\n")
    (groups / "memory" / "c" / "memory.limit_in_bytes").write_text("2000\n")
    (tmp_path / "memory.max").write_text("1\n")  # outside
    assert sorted(_read_memory_limits(mine, groups)) == [1000, 2000]
    assert list(_read_memory_limits(tmp_path / "none", groups)) == []
    assert 2**28 < read_memory_limit() < 2**60


def test_cores_are_a_quota_of_a_period(tmp_path: Path) -> None:
    mine, groups = tmp_path / "cgroup", tmp_path / "groups"
    (groups / "a" / "b").mkdir(parents=True)
    mine.write_text("0::/a/b\n4:cpu,memory:/c\n")
    (groups / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (groups / "a" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "cpu.max").write_text("1 100000\n")  # outside
    assert list(_read_core_limits(mine, groups)) == [1.5]


def test_another_process_is_looked_at_and_one_that_has_ended_is_an_error() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert 0 < read_core_limit(process.pid) <= len(os.sched_getaffinity(0))
        assert read_memory_limit(process.pid) == read_memory_limit()
    with pytest.raises(OSError, match="process"):
        read_core_limit(process.pid)
