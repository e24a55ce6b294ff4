"""The steps of the demo: the very commands of a real deployment, in order, and the files that people fill in between.

The built-in breast-cancer data are dealt to three sites. With noise each site's policy permits one such run: its budget
is for the whole life of its data.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

Stage = Literal["set up", "start", "train", "verify", "report", "stop"]

SITES: Final = ("site-0", "site-1", "site-2")
"""The names that a simulation gives its nodes."""
RUN: Final = "demo"
ROUNDS: Final = 6
EPSILON: Final = 8.0
UNITS: Final = 130
"""Number of units that each site declares: its training records, rounded."""
DELTA: Final = 7e-4
"""1 / (10 x units), rounded down."""

POLICY: Final[Mapping[str, Any]] = {
    "epsilon": EPSILON,
    "delta": DELTA,
    "declare_units": UNITS,
    "unit": "record",
    "records_per_unit_at_most": 4,
    "noise_multiplier_at_least": 0.5,
    "clipping_norm_at_most": 1.0,
    "steps_at_most": 50,
    "plans": ["*"],
    "models": ["*"],
    "codecs": ["topk-sign"],
    "bytes_at_most": 1_000_000,
}
"""What each site's policy permits; whatever it does not name is denied."""


@dataclass(frozen=True)
class Folders:
    """Folders of the demo.

    Attributes:
        out: Folder of everything.
    """

    out: Path

    @property
    def server(self) -> Path:
        """The server's project."""
        return self.out / "server"

    @property
    def run(self) -> Path:
        """The run."""
        return self.server / "runs" / RUN

    @property
    def log(self) -> Path:
        """Output of all commands."""
        return self.out / "demo.log"

    def site(self, name: str) -> Path:
        """The folder of a site."""
        return self.out / name


@dataclass(frozen=True)
class Command:
    """One `fedglm` command.

    Attributes:
        arguments: Arguments of the command, as a user types them.
        where: Whose command it is: "server", or a site's name.
    """

    arguments: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class Edit:
    """Values that people fill in.

    Attributes:
        path: TOML file with a line for each key, perhaps as a comment.
        values: Values by key.
        where: Whose file it is: "server", or a site's name.
    """

    path: Path
    values: Mapping[str, Any]
    where: str


Step = Command | Edit


def plan_steps(folders: Folders, port: int, control_port: int) -> dict[Stage, list[Step]]:
    """Plan the steps of each stage, in order.

    Args:
        folders: Folders of the demo.
        port: Free port for the sites.
        control_port: Free port to start runs.
    """
    server = str(folders.server)
    listening = ("--host", "127.0.0.1", "--listen", "127.0.0.1", "--port", str(port), "--control-port")
    kits = tuple(word for name in SITES for word in ("--site", name))
    records = tuple(word for name in SITES for word in ("--site", str(folders.site(name))))

    def at_server(*arguments: str) -> Command:
        return Command(arguments, "server")

    set_up: list[Step] = [at_server("provision", server, "--name", "demo", *listening, str(control_port), *kits)]
    for number, name in enumerate(SITES):
        folder = folders.site(name)
        set_up += [
            Command(("client", "keygen", str(folders.server / "kits" / name), "--out", str(folder)), name),
            Edit(folder / "site.toml", {"source": "breast-cancer", "share": f"{number}/{len(SITES)}"}, name),
            Edit(folder / "policy.toml", POLICY, name),
            Command(("client", "sign-policy", str(folder)), name),
            at_server("server", "enrol", str(folder / f"{name}.pub"), "-C", server),
        ]
    noise = ("--epsilon", f"{EPSILON:g}", "--set", f"privacy.units={UNITS}")
    return {
        "set up": set_up,
        "start": [
            at_server("server", "start", "-C", server),
            *(Command(("client", "start", str(folders.site(name))), name) for name in SITES),
        ],
        "train": [at_server("run", "hospital", "-C", server, "--name", RUN, "--rounds", str(ROUNDS), *noise)],
        "verify": [at_server("audit", "verify", str(folders.run), *records)],
        "report": [at_server("audit", "report", str(folders.run), *records)],
        "stop": [
            *(Command(("client", "stop", str(folders.site(name))), name) for name in SITES),
            at_server("server", "stop", "-C", server),
        ],
    }
