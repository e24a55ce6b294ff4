"""The program that is measured: a process that opens a light release, uses it, and prints what that took as JSON.

It is a process of its own, so that memory and the time of imports are those of the model in use and nothing else's.
"""

import time

BEGAN = time.perf_counter()  # before the imports below, which are measured

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

_PROMPT = 64
_LEAST, _MOST, _SECONDS = 20, 200, 5.0
_MOST_SECONDS = 10.0
"""For each of the two latencies; a device that runs fewer than `_LEAST` times meanwhile is told by fewer."""


def main(folder: Path, manifest: str, threads: int) -> None:
    """Open a release whose manifest has this hash, use it, and print the figures."""
    import numpy as np

    from fedglm.core.processes.parent_process import end_with_parent
    from fedglm.inference.device.power import PowerMeter
    from fedglm.inference.opening import open_light
    from fedglm.inference.release.manifest import MANIFEST, hash_bytes

    imported = time.perf_counter()
    end_with_parent()
    if hash_bytes((folder / MANIFEST).read_bytes()) != manifest:
        sys.exit("the release was replaced while it was validated")
    opened = open_light(folder, keys=(), threads=threads)
    loaded = time.perf_counter()
    session, count = opened.session, min(_PROMPT, opened.session.max_length // 2)
    prompt = np.arange(count, dtype=np.int64)[None] % session.vocab_size
    prefill, decode = list[float](), list[float]()
    with PowerMeter() as meter:
        logits, start = session.run(prompt)  # the first run allocates
        while not _is_enough(prefill):
            began = time.perf_counter()
            session.run(prompt)
            prefill.append(time.perf_counter() - began)
        cache = start
        while opened.inputs.task.is_generative and not _is_enough(decode):
            if cache.length == session.max_length:
                cache = start
            token = logits[:, -1].argmax(-1)[:, None].astype(np.int64)
            began = time.perf_counter()
            logits, cache = session.run(token, cache)
            decode.append(time.perf_counter() - began)
    figures = {
        "import_ms": 1e3 * (imported - BEGAN),
        "load_ms": 1e3 * (loaded - imported),
        "prompt_tokens": count,
        "prefill_ms": [1e3 * each for each in prefill],
        "decode_ms": [1e3 * each for each in decode],
        "peak_bytes": read_peak(),
        "watts": meter.watts,
    }
    print(json.dumps(figures))  # noqa: T201 - to the process that asked


def _is_enough(seconds: list[float]) -> bool:
    count, total = len(seconds), sum(seconds)
    return count >= _MOST or total >= _MOST_SECONDS or (count >= _LEAST and total >= _SECONDS)


def read_peak() -> int | None:
    """Return the peak resident memory in bytes; None where the kernel does not tell.

    Not that of ``getrusage``, which counts the process that started this one until this program was loaded.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
