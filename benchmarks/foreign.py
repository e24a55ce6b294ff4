"""Peers that cannot share our environment, in one of their own: NNCodec and the 8-bit quantizer that NVFLARE uses.

NNCodec (ISO/IEC 15938-17) wants a numpy below 2. Where bitsandbytes is installed, peft imports it, which slows every
start of fedglm. So both live in an environment that pip makes once under a cache folder; what is done is printed. It
takes a C++ compiler, since NNCodec comes as source, and six gigabytes, since it brings its own torch. The processes
exchange JSON and raw float32; NNCodec's own way to keep a state (`numpy.load` with `allow_pickle=True`) is not used.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
from environments import make_environment

from fedglm.compression.layout import Layout
from fedglm.compression.vectors import Vector

PINS = {"nncodec": "2.1.3", "bitsandbytes": "0.50.2"}
_CHILD = Path(__file__).with_name("foreign_process.py")


@dataclass(frozen=True)
class Coded:
    """What came of one update: bytes, values sent, seconds to encode and to decode, and the decoded vector."""

    bytes: int
    sent: int
    encode: float
    decode: float
    decoded: Vector


class ForeignPeers:
    """The peers, in a process of their own that `running` starts."""

    def __init__(self, requests: IO[str], answers: IO[str], folder: Path) -> None:
        self._requests, self._answers = requests, answers
        self._update, self._decoded = folder / "update", folder / "decoded"

    @classmethod
    @contextmanager
    def running(cls, cache: Path) -> "Iterator[ForeignPeers]":
        """Start it, and end it afterwards.

        Args:
            cache: Folder for its environment, which is made where there is none.

        Raises:
            RuntimeError: The environment cannot be made; pip's last words say why.
        """
        home = cache / ("peers-" + "-".join(PINS.values()))
        command = [str(make_environment(home, PINS)), str(_CHILD)]
        pipe = subprocess.PIPE
        with (
            tempfile.TemporaryDirectory() as folder,
            (Path(folder) / "words").open("w+") as words,
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=words, text=True) as process,  # noqa: S603 - ours
        ):
            answers = cast("IO[str]", process.stdout)
            if not answers.readline():
                words.seek(0)
                raise RuntimeError(f"they do not start: {words.read()[-400:].strip()} (to make {home} anew, remove it)")
            yield cls(cast("IO[str]", process.stdin), answers, Path(folder))

    def measure(self, scheme: str, vector: Vector, layout: Layout, density: float, repeats: int) -> Coded:
        """Code and decode one update there, by `nncodec` or `blockwise8` (which sends all values at any density)."""
        vector.astype("<f4").tofile(self._update)
        request = {
            "scheme": scheme,
            "update": str(self._update),
            "decoded": str(self._decoded),
            "tensors": list(zip(layout.names, layout.shapes, strict=True)),
            "density": density,
            "repeats": repeats,
        }
        print(json.dumps(request), file=self._requests, flush=True)
        if not (line := self._answers.readline()):
            raise RuntimeError(f"the peers' process ended; run {_CHILD.name} by hand, in their environment, to see why")
        return Coded(**json.loads(line), decoded=np.fromfile(self._decoded, "<f4").astype(np.float32))
