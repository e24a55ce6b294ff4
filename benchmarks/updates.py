"""Updates to measure codecs on: normal ones, and real ones of a GLM that learns in a federation.

    python benchmarks/updates.py [--rounds R] [--cache FOLDER]

prints what the real ones are like.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import sleep

import numpy as np

from fedglm.client.state.node_state import NodeState, StateError
from fedglm.compression.codec import decode, make_codec
from fedglm.compression.layout import Layout
from fedglm.compression.positions import coding, signed
from fedglm.compression.vectors import Vector
from fedglm.scenarios.stage import build_scenario

ROUNDS = 45
TAKEN = 9
"""Rounds whose updates are taken, spread over the run: they are not alike early and late."""
RUN = "--codec topk-sign --density 0.01 --set downlink.codec=topk-sign --set downlink.density=0.03"
CACHE = Path.home() / ".cache" / "fedglm" / "benchmarks"
_COLUMNS = 1000
_LOOK_S = 0.2


@dataclass(frozen=True)
class Sample:
    """Updates of one kind.

    Attributes:
        name: What they are.
        vectors: float32, each of the layout's size.
        layout: Their tensors.
    """

    name: str
    vectors: tuple[Vector, ...]
    layout: Layout


def normal(size: int, seed: int = 0) -> Sample:
    """One update of independent normal values, standard deviation 1e-4, as a matrix of 1000 columns and a rest."""
    rows, rest = divmod(size, _COLUMNS)
    tensors = {"matrix": (rows, _COLUMNS), "rest": (rest,)}
    layout = Layout(
        tuple(name for name, shape in tensors.items() if all(shape)),
        tuple(shape for shape in tensors.values() if all(shape)),
    )
    vector = (np.random.default_rng(seed).standard_normal(size) * 1e-4).astype(np.float32)
    return Sample(f"a normal update of {size} values", (vector,), layout)


def real(rounds: int = ROUNDS, cache: Path = CACHE) -> Sample:
    """What nodes of `fedglm simulate text` at 1 % had to send: one update each of nine rounds, the nodes in turn.

    The run is made once; its updates are kept in `cache`.

    Raises:
        subprocess.CalledProcessError: The run failed; it has said why.
    """
    kept = cache / f"text-{rounds}-rounds.npz"
    if not kept.is_file():
        folder = cache / f"text-{rounds}-rounds"
        command = [sys.executable, "-c", "from fedglm.cli.main import main; main()", "simulate", "text", *RUN.split()]
        command += ["--rounds", str(rounds), "--out", str(folder)]
        print(f"running `fedglm {' '.join(command[3:])}`", flush=True)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as run:  # noqa: S603 - this interpreter, our command
            taken = _watch(run, folder, _spread(rounds))
        if run.returncode:
            raise subprocess.CalledProcessError(run.returncode, command)
        layout = build_scenario((folder / "scenario.toml").read_text()).model.layout
        np.savez(kept, vectors=np.stack(taken), layout=layout.to_json())
    return from_file(kept, f"real updates of a GLM, rounds {', '.join(map(str, _spread(rounds)))} of the text scenario")


def from_file(path: Path, name: str) -> Sample:
    """The updates of a file: `vectors`, float32 (m, n), and `layout`, the text of `Layout.to_json`."""
    with np.load(path, allow_pickle=False) as stored:
        return Sample(name, tuple(stored["vectors"]), Layout.from_json(str(stored["layout"])))


def _spread(rounds: int) -> range:
    every = max(1, rounds // TAKEN)
    return range((every + 1) // 2, rounds + 1, every)


def _watch(run: "subprocess.Popen[bytes]", folder: Path, wanted: range) -> list[Vector]:
    """The update of each wanted round, while the run goes on: a node keeps what it sent until its next round.

    An update is put together again from what its node has on disk: the bytes, and what they left out.
    """
    taken: list[Vector] = []
    running = True
    while running and len(taken) < len(wanted):
        running = run.poll() is None
        nodes = sorted((folder / "nodes").glob("*/state.json"))
        update = None
        if nodes:
            update = _update_of(nodes[len(taken) % len(nodes)].parent, wanted[len(taken)])
        if update is None:
            sleep(_LOOK_S)
        else:
            taken.append(update)
    if run.wait() == 0 and len(taken) < len(wanted):
        raise RuntimeError(f"round {wanted[len(taken)]} went by unseen: remove {folder} and start again")
    return taken


def _update_of(node: Path, number: int) -> Vector | None:
    """What the node had to send in that round, None before it has."""
    try:
        size = next(node.glob("base-*.bin")).stat().st_size // 4
        pending = NodeState.load(node, size).pending
    except (StateError, StopIteration, FileNotFoundError):  # it is just being replaced
        return None
    if pending is None or pending.residual is None or pending.round != number:
        return None
    update = pending.residual.copy()
    decode(pending.blob, size=size).add_to(update, 1.0)
    return update


def message_bits(vector: Vector, layout: Layout) -> dict[str, float]:
    """Bits for each value that `topk-sign` sends at 1 %: of the whole message, and of its positions and signs."""
    codec = make_codec("topk-sign", density=0.01, layout=layout)
    blob = codec.encode(vector)
    sent = codec.decode(blob, layout.size)
    both = len(signed.pack(sent.positions, sent.values < 0, layout.size, layout, "smallest"))
    alone = len(coding.pack(sent.positions, layout.size, layout, "smallest"))
    parts = {"all": len(blob), "positions": alone, "signs": both - alone}
    return {part: 8 * length / sent.positions.size for part, length in parts.items()}


def main() -> None:
    """Print what the real updates are like."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    given = parser.parse_args()
    sample = real(given.rounds, given.cache)
    print(f"{sample.name}, in {len(sample.layout.names)} tensors")
    for vector in sample.vectors:
        energy = np.sort(np.square(vector, dtype=np.float64))[::-1]
        shares = {density: energy[: round(density * vector.size)].sum() / energy.sum() for density in (0.01, 0.05)}
        held = ", ".join(f"top {density:.0%} hold {share:.1%}" for density, share in shares.items())
        bits = ", ".join(f"{part} {number:.2f}" for part, number in message_bits(vector, sample.layout).items())
        print(f"norm {np.sqrt(energy.sum()):.3f}, {held} of the energy; bits a value of topk-sign at 1 %: {bits}")


if __name__ == "__main__":
    main()
