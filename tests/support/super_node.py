"""A bare SuperNode of Flower's, without a site behind it."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from projects import free_ports

from fedglm.cli.process.daemon import Daemon
from fedglm.cli.process.flower_environment import make_flower_environment


class SuperNode:
    """A bare SuperNode of a site; it and all that it starts end with the block."""

    def __init__(self, project, site, folder, *, authority=None):
        self.log = folder / f"{site.name}-node.log"
        command = [
            Path(sys.executable).with_name("flower-supernode"),
            *("--root-certificates", authority or project.authority),
            *("--superlink", project.settings.address),
            *("--port", str(free_ports(1)[0])),
            *("--auth-supernode-private-key", site.flower_key(folder)),
        ]
        self._daemon = Daemon(folder / "nodes", site.name)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | make_flower_environment(folder / "home") | {"FEDGLM_DAEMON": self._daemon._mark},
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for pid in self._daemon.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def said(self):
        return self.log.read_text(errors="replace")
