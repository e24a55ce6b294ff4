"""A federation of real processes on this machine, as deployed: SuperLink and SuperNodes with TLS and authentication."""

import re
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from fedglm.cli.process.daemon import Daemon

COMMAND = Path(sys.executable).with_name("fedglm")
OPEN = {
    "without_differential_privacy": "true",
    "steps_at_most": "1000",
    "plans": '["*"]',
    "models": '["*"]',
    "codecs": '["*"]',
    "bytes_at_most": "100_000_000",
}
"""What a policy of a trial permits, as TOML values."""


class Deployment:
    """A project and its sites, each with a part of built-in data; a context manager that leaves no process behind.

    Args:
        folder: For everything.
        sites: How many.
        source: The built-in data.
        parts: Into how many parts they are dealt; by default one for each site.
        policy: On top of `OPEN`.
        before: What the command of a site's node begins with, such as `taskset`.

    Attributes:
        project: The project's folder.
    """

    def __init__(
        self,
        folder: Path,
        sites: int,
        source: str,
        *,
        parts: int | None = None,
        policy: dict[str, str] | None = None,
        before: list[str] | None = None,
    ) -> None:
        self.project, self._before = folder / "fed", before
        self._sites = [folder / f"site-{number}" for number in range(sites)]
        named = [option for site in self._sites for option in ("--site", site.name)]
        ports = ("--port", free_port(), "--control-port", free_port())
        told("provision", self.project, "--host", "127.0.0.1", *ports, *named)
        for number, site in enumerate(self._sites):
            told("client", "keygen", self.project / "kits" / site.name, "--out", site)
            fill_in(site / "site.toml", {"source": f'"{source}"', "share": f'"{number}/{parts or sites}"'})
            fill_in(site / "policy.toml", OPEN | (policy or {}))
            told("client", "sign-policy", site)
            told("server", "enrol", site / f"{site.name}.pub", "-C", self.project)

    def __enter__(self) -> Self:
        told("server", "start", "-C", self.project)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_nodes()
        told("server", "stop", "-C", self.project)

    @property
    def sites(self) -> list[Path]:
        """The sites' folders."""
        return list(self._sites)

    def start_nodes(self) -> list[Daemon]:
        """Start every site's node."""
        for site in self._sites:
            told("client", "start", site, before=self._before)
        return [Daemon(site / "state", "supernode") for site in self._sites]

    def stop_nodes(self) -> None:
        """End every site's node."""
        for site in self._sites:
            told("client", "stop", site)


def told(*arguments: object, before: list[str] | None = None) -> None:
    """Run a command of ours; its output only matters where it fails."""
    argv = [*(before or []), str(COMMAND), *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if done.returncode:
        sys.exit(f"fedglm {' '.join(map(str, arguments))}: {done.stderr}")


def fill_in(path: Path, values: dict[str, str]) -> None:
    """Give keys of a commented TOML template their values."""
    text = path.read_text()
    for key, value in values.items():
        text = re.sub(rf"(?m)^#?{key} = .*$", f"{key} = {value}", text, count=1)
    path.write_text(text)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        return int(made.getsockname()[1])
