"""What memory a site's node takes: a real SuperLink and one real SuperNode on this machine, a few rounds.

    python benchmarks/node_memory.py [--scenario text] [--rounds 3] [--imports]

"peak" is the kernel's own mark (VmHWM) of the greatest process of its kind, pages shared with others included. "own" is
what of it no file stands behind (RssAnon, every 50 ms): the rest, mostly libraries, the kernel may drop and read again.
"whole node" is what all of the site's processes held at the same moment, each shared page counted once (the sum of Pss,
and of RssAnon), at its greatest. The node is one site of four, on one core, with TLS and authentication as deployed.

With --imports: what a fresh process holds after each of the imports that the worker needs, one after the other.
"""

import argparse
import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fedglm.cli.daemon import Daemon
from fedglm.cli.process_usage import proportional_bytes

COMMAND = Path(sys.executable).with_name("fedglm")
SITE, WHOLE = "edge", "whole node"
KINDS = {
    "flower-supernode": "SuperNode",
    "flower-superexec": "SuperExec",
    "flwr-clientapp": "ClientApp",
    "fedglm.client.worker": "worker",
}
IMPORTS = (
    "numpy",
    "flwr.app",
    "numba",
    "torch",
    "fedglm.client.worker",
    "torch._dynamo",
    "transformers.models.glm.modeling_glm",
    "peft",
    "fedglm.client.site_node",
)
POLICY = {
    "without_differential_privacy": "true",
    "steps_at_most": "1000",
    "plans": '["*"]',
    "models": '["*"]',
    "codecs": '["*"]',
    "bytes_at_most": "100_000_000",
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="text")
    parser.add_argument("--source", default="pydoc", help="the scenario's data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--imports", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, federation(Path(folder), options.source) as (project, node):
        process = subprocess.Popen(  # noqa: S603 - our own command
            [COMMAND, "run", options.scenario, "-C", project, "--no-dp", "--rounds", str(options.rounds), "--json"],
            stdout=subprocess.DEVNULL,
        )
        peaks = watched(node, process)
        if process.returncode:
            sys.exit(f"the run failed ({process.returncode}): {' '.join(node.tail(5))}")
    print(f"{options.scenario}, {options.rounds} rounds, one core")
    print(f"{'process':<12} {'peak':>9} {'own':>9}")
    for kind in (*KINDS.values(), WHOLE):
        if kind in peaks:
            print(f"{kind:<12} {peaks[kind].held / 2**20:>5.0f} MiB {peaks[kind].own / 2**20:>5.0f} MiB")
    if options.imports:
        print_imports()


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
            with contextlib.suppress(OSError, KeyError):  # ended meanwhile
                kind, status = kind_of(pid), status_of(pid)
                peaks[kind] = peaks.get(kind, Peak()).raised(status["VmHWM"], status["RssAnon"])
                held, own = held + proportional_bytes(pid), own + status["RssAnon"]
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
def federation(folder: Path, source: str) -> Iterator[tuple[Path, Daemon]]:
    """A project and one site, both started; the block gets the project's folder and the node's daemon."""
    project, site = folder / "fed", folder / SITE
    port, control = free_port(), free_port()
    told("provision", project, "--host", "127.0.0.1", "--port", port, "--control-port", control, "--site", SITE)
    told("client", "keygen", project / "kits" / SITE, "--out", site)
    fill_in(site / "site.toml", {"source": f'"{source}"', "share": '"0/4"'})
    fill_in(site / "policy.toml", POLICY)
    told("client", "sign-policy", site)
    told("server", "enrol", site / f"{SITE}.pub", "-C", project)
    core = min(os.sched_getaffinity(0))
    try:
        told("server", "start", "-C", project)
        told("client", "start", site, before=["taskset", "-c", str(core)])
        yield project, Daemon(site / "state", "supernode")
    finally:
        told("client", "stop", site)
        told("server", "stop", "-C", project)


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


def print_imports() -> None:
    """What a fresh process holds after each import."""
    code = (
        "import importlib, sys\n"
        "def held():\n"
        "    return int(next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1]) / 1024\n"
        "before = held(); print(f\"{'(Python itself)':<50} {before:>5.0f} MiB\")\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name); now = held()\n"
        "    print(f'{name:<50} {now:>5.0f} MiB  +{now - before:.0f}'); before = now\n"
    )
    print(f"\n{'after importing':<50} {'held':>9}")
    sys.stdout.flush()
    subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-c", code, *IMPORTS], check=True
    )


if __name__ == "__main__":
    main()
