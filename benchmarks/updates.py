"""Updates to measure codecs on: normal ones, and real ones of a GLM that learns in a federation.

    python benchmarks/updates.py [--rounds R] [--cache FOLDER]

prints what the real ones are like.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedglm.client.state import NodeState
from fedglm.compression.codec import decode
from fedglm.compression.layout import Layout
from fedglm.compression.vectors import Vector
from fedglm.simulations.nodes import build_stage, folder_name

ROUNDS = 8
CACHE = Path.home() / ".cache" / "fedglm" / "benchmarks"
_COLUMNS = 1000


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
    """What each node of `fedglm simulate text` had to send in the last of some rounds.

    The run is made once and kept in `cache`. An update is put together again from what its node has on disk: the bytes
    that it sent and has no receipt for yet, and what they left out.

    Raises:
        subprocess.CalledProcessError: The run failed; it has said why.
    """
    folder = cache / f"text-{rounds}-rounds"
    if not (folder / "summary.json").is_file():
        print(f"running `fedglm simulate text` for {rounds} rounds in {folder}", flush=True)
        command = [sys.executable, "-c", "from fedglm.cli.main import main; main()", "simulate", "text"]
        command += ["--rounds", str(rounds), "--out", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - this interpreter, our command
    stage = build_stage((folder / "scenario.toml").read_text())
    layout = stage.workbench.layout
    vectors = []
    for site in stage.data.sites:
        state = NodeState.load(folder / "nodes" / folder_name(site.name), layout.size)
        pending = state.pending
        if pending is None or pending.residual is None:
            raise RuntimeError(f"{folder} keeps no update of {site.name}: remove it and start again")
        update = pending.residual.copy()
        decode(pending.blob, size=layout.size).add_to(update, 1.0)
        vectors.append(update)
    return Sample(
        f"{len(vectors)} real updates of a GLM of {layout.size} parameters, round {rounds} of the text scenario",
        tuple(vectors),
        layout,
    )


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
        print(f"norm {np.sqrt(energy.sum()):.3f}, {held} of the energy")


if __name__ == "__main__":
    main()
