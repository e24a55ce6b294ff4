"""What memory a site's node takes: a real SuperLink and one real SuperNode on this machine, a few rounds.

    python benchmarks/node_memory.py [--scenario text] [--rounds 3] [--imports]

"peak" is the kernel's own mark (VmHWM) of the greatest process of its kind, pages shared with others included. "whole
node" is what all of the site's processes held at the same moment, each shared page counted once (the sum of Pss, every
50 ms), at its greatest. The node is one site of four, on one core, with TLS and authentication as deployed.

With --imports: what a fresh process holds after each of the imports that the ClientApp needs, one after the other.
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

from fedglm.cli.daemon import Daemon
from fedglm.cli.process_usage import proportional_bytes

COMMAND = Path(sys.executable).with_name("fedglm")
SITE = "edge"
KINDS = {
    "flower-supernode": "SuperNode",
    "flower-superexec": "SuperExec",
    "flwr-clientapp": "ClientApp",
    "fedglm.client.worker": "worker",
}
IMPORTS = (
    "numpy",
    "flwr.supernode.runtime.run_clientapp",
    "flwr.clientapp",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "pydantic",
    "numba",
    "scipy.sparse",
    "torch",
    "torch._dynamo",
    "transformers",
    "transformers.models.glm.modeling_glm",
    "fedglm.client.deployed",
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
        process = subprocess.Popen(
            [COMMAND, "run", options.scenario, "-C", project, "--no-dp", "--rounds", str(options.rounds), "--json"],
            stdout=subprocess.DEVNULL,
        )
        peaks, whole, at_once = watched(node, process)
        if process.returncode:
            sys.exit(f"the run failed: see {node.log}")
    print(f"{options.scenario}, {options.rounds} rounds, one core")
    print(f"{'process':<12} {'peak':>9}")
    for kind in KINDS.values():
        print(f"{kind:<12} {peaks.get(kind, 0) / 2**20:>5.0f} MiB")
    print(f"{'whole node':<12} {whole / 2**20:>5.0f} MiB in {at_once} processes")
    if options.imports:
        print_imports()


def watched(node: Daemon, process: "subprocess.Popen[bytes]") -> tuple[dict[str, int], int, int]:
    """Peaks by kind of process, and the greatest sum over all of them and how many they were; until `process` ends."""
    peaks: dict[str, int] = {}
    whole = at_once = 0
    while process.poll() is None:
        held = 0
        members = node.members()
        for pid in members:
            with contextlib.suppress(OSError, StopIteration):  # ended meanwhile
                kind = kind_of(pid)
                peaks[kind] = max(peaks.get(kind, 0), high_water_mark(pid))
                held += proportional_bytes(pid)
        if held > whole:
            whole, at_once = held, len(members)
        time.sleep(0.05)
    return peaks, whole, at_once


def kind_of(pid: int) -> str:
    """What the process is, by its command line."""
    line = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    return next((kind for word, kind in KINDS.items() if word in line), "other")


def high_water_mark(pid: int | str) -> int:
    """Most bytes that it ever held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


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
    done = subprocess.run([*(before or []), COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)
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
        "def held(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1]) / 1024\n"
        "before = held(); print(f\"{'(Python itself)':<50} {before:>5.0f} MiB\")\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name); now = held()\n"
        "    print(f'{name:<50} {now:>5.0f} MiB  +{now - before:.0f}'); before = now\n"
    )
    print(f"\n{'after importing':<50} {'held':>9}")
    sys.stdout.flush()
    subprocess.run([sys.executable, "-c", code, *IMPORTS], check=True)


if __name__ == "__main__":
    main()
