"""A whole federation of real processes on this machine: SuperLink, SuperNodes, TLS, authentication, `fedglm run`."""

import contextlib
import json
import os
import re
import signal
import urllib.request
from pathlib import Path

from command_line import Process, run_here, soon
from projects import free_ports

from fedglm.cli.process.daemon import Daemon
from fedglm.privacy.keys.passphrase import FILE_VARIABLE
from fedglm.privacy.ledger.ledger import Ledger

OPEN = {
    "without_differential_privacy": "true",
    "steps_at_most": "1000",
    "plans": '["*"]',
    "models": '["*"]',
    "codecs": '["topk-sign", "topk-fp16", "dense-fp32"]',
    "bytes_at_most": "10_000_000",
    "declare_units": "100",
}
"""What a policy of a trial permits."""


SERVER = "server"
SITES = 5
SHORT = ("--rounds", "4", "--set", "evaluation.baselines=[]")


def told(result):
    assert result.code == 0, result.err
    return result


def simulated(folder, *options):
    """Summary of the scenario `hospital`, simulated with as many sites."""
    return told(run_here("simulate", "hospital", "--no-dp", "--nodes", SITES, "--out", folder, "--json", *options)).json


class Federation:
    """A project, its sites, and the processes of both; a context manager that leaves no process behind.

    Args:
        folder: For everything.
        sites: How many; each gets its part of built-in data.
        source: The built-in data.
        policy: What the sites' policies permit, as TOML values.
        network: Hosts of their own for the server and each site; without one all are this host.
        prepare: Gives a site's folder its records, instead of its part of the built-in data.
    """

    def __init__(
        self, folder: Path, sites: int, *, source="breast-cancer", policy=OPEN, network=None, prepare=None
    ) -> None:
        self.folder, self.names = folder, [f"site-{number}" for number in range(sites)]
        self._network = network
        self.project = folder / "fed"
        port, control, self.figures_port = free_ports(3)
        named = [option for name in self.names for option in ("--site", name)]
        host = "127.0.0.1" if network is None else network.server_address
        ports = ("--port", port, "--control-port", control, "--listen", host)
        told(run_here("provision", self.project, "--host", host, *ports, *named))
        secret = folder / "passphrase"
        secret.touch(mode=0o600)
        secret.write_text("correct horse battery staple")
        os.environ[FILE_VARIABLE] = str(secret)  # the second site's keys are locked with it
        for number, name in enumerate(self.names):
            home = self.site(name)
            (self.project / "kits" / name).rename(home)
            told(run_here("client", "keygen", home, *(["--passphrase"] if number == 1 else [])))
            if prepare is None:
                fill_in(home / "site.toml", {"source": f'"{source}"', "share": f'"{number}/{sites}"'})
            else:
                prepare(home)
            if number == 0:
                fill_in(home / "site.toml", {"metrics_port": str(self.figures_port)})
            fill_in(home / "policy.toml", policy)
            told(run_here("client", "sign-policy", home))
            (self.project / "kits" / name).mkdir()
            told(run_here("server", "enrol", home / f"{name}.pub", "-C", self.project))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.environ.pop(FILE_VARIABLE, None)
        for daemon in self.daemons:
            for pid in daemon.members():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def site(self, name) -> Path:
        return self.folder / name

    @property
    def daemons(self) -> list[Daemon]:
        nodes = [Daemon(self.site(name) / "state", "supernode") for name in self.names]
        return [Daemon(self.project / "state", "superlink"), *nodes]

    @property
    def processes(self) -> set[int]:
        """All that runs, but `fedglm run` itself."""
        return {pid for daemon in self.daemons for pid in daemon.members()}

    def start_server(self):
        return told(self._at(SERVER, "server", "start", "-C", self.project))

    def start_site(self, name):
        return told(self._at(name, "client", "start", self.site(name)))

    def _at(self, place, *arguments):
        """The command at the server or a site."""
        if self._network is None:
            return run_here(*arguments)
        # Not as a context manager: what the command starts is to stay.
        return Process(*arguments, prefix=self._network.inside(place)).finish()

    def start(self):
        self.start_server()
        for name in self.names:
            self.start_site(name)

    def stop(self):
        for name in self.names:
            self._at(name, "client", "stop", self.site(name))
        self._at(SERVER, "server", "stop", "-C", self.project)

    def run(self, scenario, name, *options) -> Process:
        """`fedglm run`, under way."""
        prefix = () if self._network is None else self._network.inside(SERVER)
        return Process("run", scenario, "-C", self.project, "--name", name, *options, "--json", prefix=prefix)

    def figures(self):
        """What the first site's node shows to Prometheus."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.figures_port}/metrics", timeout=10) as answer:
            return answer.read().decode()

    def events(self, name):
        path = self.project / "runs" / name / "events.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def rounds(self, name):
        path = self.project / "runs" / name / "rounds.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def charges(self, name):
        """Charges for updates in a site's ledger."""
        rows = Ledger(self.site(name) / "custody" / "ledger.sqlite").rows()
        return [row.charge for row in rows if row.charge.purpose == "update"]


def fill_in(path, values):
    """Give keys of a commented TOML template their values."""
    text = path.read_text()
    for key, value in values.items():
        text, found = re.subn(rf"(?m)^#?{key} = .*$", lambda _, k=key, v=value: f"{k} = {v}", text, count=1)
        assert found == 1, f"{path} has no {key}"
    path.write_text(text)


def running(folder):
    """A federation of built-in data while a module's tests run; for a fixture to yield from."""
    with Federation(folder, SITES) as made:
        made.start()
        yield made
        made.stop()
        assert soon(lambda: made.processes == set()), "the stopped federation left processes behind"
