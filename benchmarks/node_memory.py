"""What memory a site's node takes: a real SuperLink and one real SuperNode on this machine, a few rounds.

    python benchmarks/node_memory.py [--scenario text] [--rounds 3] [--epsilon 8] [--limit 512] [--imports]

"peak" is the kernel's own mark (VmHWM) of the greatest process of its kind, pages shared with others included. "own" is
what of it no file stands behind (RssAnon, every 50 ms): the rest, mostly libraries, the kernel may drop and read again.
"whole node" is what all of the site's processes held at the same moment, each shared page counted once (the sum of Pss,
and of RssAnon), at its greatest. The node is one site of four, on one core, with TLS and authentication as deployed.

With --limit the kernel gives the node that many megabytes (10^6 bytes) and no more, what it reads of files included
(a memory control group, version 1, so it needs root): the run is finished within them, or it fails. With --imports:
what a fresh process holds after each of the imports that the worker needs, as they are and as the worker makes them.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
from deployment import COMMAND, Deployment

from fedglm.cli.process.daemon import Daemon

WHOLE = "whole node"
KINDS = {
    "fedglm.cli.client.node": "SuperNode",
    "fedglm.client.supernode.worker_process": "worker",
}
IMPORTS = (
    "numpy",
    "flwr.app",
    "numba",
    "torch",
    "fedglm.client.supernode.worker",
    "torch._dynamo",
    "transformers.models.glm.modeling_glm",
    "peft",
    "fedglm.client.site.site_node",
)
UNITS = 1000
WITH_NOISE = {
    "without_differential_privacy": "false",
    "delta": "1e-6",
    "declare_units": str(UNITS),
    "unit": '"record"',
    "records_per_unit_at_most": "16",
    "noise_multiplier_at_least": "0.1",
    "clipping_norm_at_most": "10.0",
}
GROUP = Path("/sys/fs/cgroup/memory")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="text")
    parser.add_argument("--source", default="pydoc", help="the scenario's data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epsilon", type=float, help="train with noise, within this budget")
    parser.add_argument("--limit", type=int, metavar="MB", help="most memory that the node gets")
    parser.add_argument("--imports", action="store_true")
    options = parser.parse_args()
    noise = ["--epsilon", str(options.epsilon), "--set", f"privacy.units={UNITS}"]
    privacy = ["--no-dp"] if options.epsilon is None else noise
    policy = {} if options.epsilon is None else WITH_NOISE | {"epsilon": str(10 * options.epsilon)}
    core = min(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, limited(options.limit) as group:
        before = [*put_in(group), "taskset", "-c", str(core)]
        with Deployment(Path(folder), 1, options.source, parts=4, policy=policy, before=before) as made:
            peaks = run(made, [options.scenario, *privacy, "--rounds", str(options.rounds)])
    limit = "" if options.limit is None else f", at most {options.limit} MB"
    print(f"{options.scenario}, {options.rounds} rounds, {' '.join(privacy)}, one core{limit}")
    print(f"{'process':<12} {'peak':>9} {'own':>9}")
    for kind in (*KINDS.values(), WHOLE):
        if kind in peaks:
            print(f"{kind:<12} {peaks[kind].held / 2**20:>5.0f} MiB {peaks[kind].own / 2**20:>5.0f} MiB")
    if options.imports:
        print_imports(lean=False)
        print_imports(lean=True)


def run(made: Deployment, options: list[str]) -> dict[str, "Peak"]:
    """A run of one site; what its node's processes held at most."""
    (node,) = made.start_nodes()
    process = subprocess.Popen(  # noqa: S603 - our own command
        [COMMAND, "run", *options, "-C", made.project, "--json"], stdout=subprocess.DEVNULL
    )
    peaks = watched(node, process)
    if process.returncode:
        sys.exit(f"the run failed ({process.returncode}): {' '.join(node.tail(5))}")
    return peaks


class Peak(NamedTuple):
    """Bytes: all, and what no file stands behind."""

    held: int = 0
    own: int = 0

    def raised(self, held: int, own: int) -> "Peak":
        """The greater of each."""
        return Peak(max(self.held, held), max(self.own, own))


def watched(node: Daemon, process: "subprocess.Popen[bytes]") -> dict[str, Peak]:
    """Peaks by kind of process, and of all of them at once; until `process` ends."""
    peaks: dict[str, Peak] = {}
    while process.poll() is None:
        held = own = 0
        for pid in node.members():
            with contextlib.suppress(psutil.Error, OSError, KeyError):  # ended meanwhile
                kind, status = kind_of(pid), status_of(pid)
                peaks[kind] = peaks.get(kind, Peak()).raised(status["VmHWM"], status["RssAnon"])
                held, own = held + psutil.Process(pid).memory_full_info().pss, own + status["RssAnon"]
        peaks[WHOLE] = peaks.get(WHOLE, Peak()).raised(held, own)
        time.sleep(0.05)
    return peaks


def kind_of(pid: int) -> str:
    """What the process is, by its command line."""
    line = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    return next((kind for word, kind in KINDS.items() if word in line), "other")


def status_of(pid: int) -> dict[str, int]:
    """What the kernel says of the process's memory, in bytes by name."""
    lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[-1] == "kB"}


@contextlib.contextmanager
def limited(megabytes: int | None) -> Iterator[Path | None]:
    """A control group that may hold so much, or none; what is put there is still there until it ends."""
    if megabytes is None:
        yield None
        return
    group = GROUP / f"fedglm-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as exc:
        sys.exit(f"cannot limit memory: {group}: {exc.strerror}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(megabytes * 10**6))
        yield group
    finally:
        group.rmdir()


def put_in(group: Path | None) -> list[str]:
    """What starts a command, and all that it starts, in the group."""
    return [] if group is None else ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]


def print_imports(lean: bool) -> None:
    """What a fresh process holds after each import."""
    code = (
        "import importlib, sys\n"
        "def held():\n"
        "    return int(next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1]) / 1024\n"
        "before = held(); print(f\"{'(from the start)':<50} {before:>5.0f} MiB\")\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name); now = held()\n"
        "    print(f'{name:<50} {now:>5.0f} MiB  +{now - before:.0f}'); before = now\n"
    )
    names = ["fedglm.client.supernode.worker", "fedglm.client.site.site_node"] if lean else IMPORTS
    begin = "from fedglm.client.supernode.lean_imports import import_lean; import_lean()\n" if lean else ""
    print(f"\n{'after importing' + (', as the worker does' if lean else ''):<50} {'held':>9}")
    sys.stdout.flush()
    subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-c", begin + code, *names], check=True
    )


if __name__ == "__main__":
    main()
