"""Fixtures that several files need: the command in this process, and one finished run to compare with."""

import pytest

from command_line import Finished, run_here, write_tiny


@pytest.fixture
def fedglm(monkeypatch, capfd):
    """The command, run in this process: importing torch again for each call would take most of the suite's time."""

    def call(*arguments):
        return run_here(monkeypatch, capfd, *arguments)

    return call


@pytest.fixture
def tiny(tmp_path):
    """Path of a scenario that trains in a second."""
    return write_tiny(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The undisturbed run of the tiny scenario, by a real process, with --json."""
    return Finished(tmp_path_factory.mktemp("finished"))
