"""Seconds a round of a deployed federation, against a bare Flower app that trains the same on the same SuperLink.

    python benchmarks/round_overhead.py [--scenario text] [--rounds 6] [--sites 2]

First `fedglm run`, then `bare_flower.py` through Flower's own `flower-supernode`, on one SuperLink with TLS and node
authentication: same machine, same sites, same model, records and steps. Both train in float32, one thread a site. The
first round of each, in which models are built for the first time, is left out. What is compared is the median of the
others. Bytes are the SuperLink's own count of the whole run.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import tomli_w
from deployment import COMMAND, Deployment, free_port

from fedglm.cli.process.daemon import Daemon
from fedglm.cli.process.flower_environment import make_flower_environment
from fedglm.server.project.folder import CONNECTION, Project
from fedglm.server.superlink.control import Control, Run

HERE = Path(__file__).parent


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="text")
    parser.add_argument("--source", default="pydoc", help="the scenario's data")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--sites", type=int, default=2)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Deployment(Path(folder), options.sites, options.source, policy={"bytes_at_most": "100_000_000"}) as made,
    ):
        project = Project.open(made.project)
        ours = fedglm_rounds(made, options.scenario, options.rounds)
        made.stop_nodes()
        bare = bare_rounds(project, made, options.scenario, options.rounds, Path(folder))
        traffic = runs(project)
    print(f"{options.scenario}, {options.sites} sites, {options.rounds} rounds, {os.cpu_count()} cores")
    print(f"{'':<8} {'s a round':>9} {'least':>6} {'most':>6} {'up kB':>8} {'down kB':>8}")
    for name, times, run in (("bare", bare, traffic[0]), ("fedglm", ours, traffic[1])):
        spread = f"{min(times):>6.2f} {max(times):>6.2f}"
        up, down = run.uplink_bytes / 1e3, run.downlink_bytes / 1e3
        print(f"{name:<8} {statistics.median(times):>9.2f} {spread} {up:>8.0f} {down:>8.0f}")
    print(f"fedglm / bare: {statistics.median(ours) / statistics.median(bare):.2f}")


def fedglm_rounds(made: Deployment, scenario: str, rounds: int) -> list[float]:
    """Seconds of each round but the first."""
    made.start_nodes()
    words = [COMMAND, "run", scenario, "-C", made.project, "--name", "ours", "--no-dp", "--rounds", str(rounds)]
    done = subprocess.run([*words, "--json"], capture_output=True, text=True)  # noqa: S603 - our own command
    if done.returncode:
        sys.exit(done.stderr)
    lines = (made.project / "runs" / "ours" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return seconds([datetime.fromisoformat(one["time"]).timestamp() for one in events if one["event"] == "done"])


def bare_rounds(project: Project, made: Deployment, scenario: str, rounds: int, folder: Path) -> list[float]:
    """The same of the bare app."""
    app, times = folder / "bare", folder / "times.json"
    app.mkdir()
    shutil.copy(HERE / "bare_flower.py", app)
    config = {"scenario": scenario, "rounds": rounds, "times": str(times)}
    components = {"serverapp": "bare_flower:server", "clientapp": "bare_flower:client"}
    flower = {"publisher": "bare", "components": components, "config": config}
    about = {"name": "bare", "version": "1.0.0", "license": "Apache-2.0", "dependencies": []}
    (app / "pyproject.toml").write_text(tomli_w.dumps({"project": about, "tool": {"flwr": {"app": flower}}}))
    environment = os.environ | make_flower_environment(project.flower_home)
    with ExitStack() as nodes:
        for number, site in enumerate(made.sites):
            nodes.enter_context(stock_node(project, site, number, len(made.sites)))
        words = [Path(sys.executable).with_name("flwr"), "run", app, CONNECTION]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)  # noqa: S603 - Flower's command
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        while not all(run.status.startswith("finished") for run in runs(project)):
            time.sleep(1)
    found = json.loads(times.read_text())[1:] if times.exists() else []
    if len(found) != rounds:
        sys.exit(f"the bare app finished {len(found)} of {rounds} rounds: {runs(project)[0]}")
    return seconds(found)


@contextmanager
def stock_node(project: Project, site: Path, part: int, parts: int) -> Iterator[None]:
    """Flower's own node of a site; it and all that it starts end with the block."""
    daemon = Daemon(site / "bare", "supernode")
    words = [
        str(Path(sys.executable).with_name("flower-supernode")),
        *("--root-certificates", str(project.authority)),
        *("--superlink", project.settings.address),
        *("--auth-supernode-private-key", str(site / "flower.key")),
        *("--node-config", f"part={part} parts={parts}"),
        *("--host", "127.0.0.1", "--port", str(free_port())),
    ]
    daemon.start(words, make_flower_environment(site / "bare" / "flwr") | {"OMP_NUM_THREADS": "1"})
    try:
        yield
    finally:
        daemon.stop()


def runs(project: Project) -> list[Run]:
    """What the SuperLink says of its runs, the newest first."""
    with Control(project) as control:
        return control.list_runs()


def seconds(ends: list[float]) -> list[float]:
    """From each end to the next."""
    return [later - earlier for earlier, later in pairwise(ends)]


if __name__ == "__main__":
    main()
