"""How long a token takes: torch, our graph in each format, and llama.cpp, on one thread.

    python benchmarks/decode.py [--preset glm-10m] [--turns 60] [--no-foreign] [--json]

A GLM of the preset's shape without biases and with whole heads rotated, which llama.cpp reads as a Llama; random
weights, for which no engine has another speed. It reads a prompt and then writes a few tokens, greedily, with the cache
of keys and values. All take turns in one run, and the fastest turn of each counts: turns are short and many, because
what other programs do on the machine slows some of them. Milliseconds a token written, and of the whole prompt read;
ratios to torch and to our float32 graph. llama.cpp runs in a process of its own that does nothing between its turns,
and is timed by its own clock.
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import IO, cast

os.environ["OMP_NUM_THREADS"] = "1"

import gguf
import numpy as np
import onnxruntime
import torch
from environments import make_environment
from gguf_model import write_gguf
from transformers import GlmForCausalLM

from fedglm.autoglm.light.graph.formats import choose_formats
from fedglm.autoglm.light.graph.model import build_skeleton
from fedglm.autoglm.models.presets import find_preset, make_glm_config
from fedglm.inference.runtime.graph_session import GraphSession
from fedglm.inference.weights.quantized import QuantizedMatrix

PINS = {"xllamacpp": "2026.10.11549"}
CACHE = Path("~/.cache/fedglm/benchmarks").expanduser()
VOCAB = 288
"""Bytes and special tokens, in blocks of 32."""
SCHEMES = {"int8": (-128, 127, 128), "int4": (-8, 7, 128)}
THEIRS = ("F32", "Q8_0", "Q4_0")
Turn = Callable[[], dict[str, float]]


def make_model(preset: str) -> GlmForCausalLM:
    """A GLM that is also a Llama."""
    config = make_glm_config(find_preset(preset), vocab_size=VOCAB, pad_id=0, bos_id=1, eos_id=2, tied=True)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
    config.attention_bias = False
    torch.manual_seed(0)
    return GlmForCausalLM(config).eval()


def quantize_at_random(tensors: dict[str, np.ndarray], low: int, high: int, block: int) -> dict[str, object]:
    """Matrices of random codes in place of the model's."""
    generator = np.random.default_rng(0)
    found: dict[str, object] = {}
    for name, values in tensors.items():
        if values.ndim == 1:
            found[name] = values
            continue
        codes = generator.integers(low, high, values.shape, dtype=np.int8, endpoint=True)
        scales = np.full((len(values), -(-values.shape[1] // block)), 2.0**-8 / high, np.float32)
        scales = scales.astype(np.float16).astype(np.float32)
        found[name] = QuantizedMatrix(codes=codes, scales=scales, block=block, low=low, high=high)
    return found


def time_torch(model: GlmForCausalLM, prompt: int, tokens: int) -> dict[str, float]:
    """One turn of torch, eager."""
    with torch.no_grad():
        start = perf_counter()
        out = model(torch.full((1, prompt), 5), use_cache=True, logits_to_keep=1)
        middle = perf_counter()
        for _ in range(tokens):
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
        end = perf_counter()
    return {"prefill": 1e3 * (middle - start), "decode": 1e3 * (end - middle) / tokens}


def time_session(session: GraphSession, prompt: int, tokens: int) -> dict[str, float]:
    """One turn of ours."""
    start = perf_counter()
    logits, cache = session.run(np.full((1, prompt), 5))
    middle = perf_counter()
    for _ in range(tokens):
        logits, cache = session.run(logits.argmax(-1), cache)
    end = perf_counter()
    return {"prefill": 1e3 * (middle - start), "decode": 1e3 * (end - middle) / tokens}


@contextmanager
def running_llama(model: GlmForCausalLM, prompt: int, tokens: int) -> Iterator[dict[str, Turn]]:
    """Turns of llama.cpp by the name of its format."""
    python = make_environment(CACHE / ("llama-" + "-".join(PINS.values())), PINS)
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "words").open("w+") as words:
        paths = [Path(folder) / f"{kind}.gguf" for kind in THEIRS]
        for path, kind in zip(paths, THEIRS, strict=True):
            write_gguf(path, model, gguf.GGMLQuantizationType[kind])
        command = [str(python), str(Path(__file__).with_name("llama_process.py")), *map(str, paths)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=words, text=True) as process:  # noqa: S603 - ours
            requests, answers = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)

            def take_turn(number: int) -> dict[str, float]:
                request = {"model": number, "prompt": prompt, "tokens": tokens}
                print(json.dumps(request), file=requests, flush=True)
                return cast("dict[str, float]", json.loads(answers.readline()))

            if not answers.readline():
                words.seek(0)
                raise RuntimeError(f"llama.cpp does not start: {words.read()[-400:].strip()}")
            yield {
                f"llama.cpp {kind}": lambda number=number: take_turn(number)  # type: ignore[misc]
                for number, kind in enumerate(THEIRS)
            }


def our_turns(model: GlmForCausalLM, prompt: int, tokens: int) -> dict[str, Turn]:
    """Turns of torch and of our graph by the name of the format."""
    config = model.config.to_dict() | {"architectures": ["GlmForCausalLM"]}
    plain = {name: value.detach().numpy() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    turns: dict[str, Turn] = {"torch eager": lambda: time_torch(model, prompt, tokens)}
    for kind in ("fp32", "int8", "int4"):
        tensors = quantize_at_random(plain, *SCHEMES[kind]) if kind in SCHEMES else plain
        session = GraphSession.open(build_skeleton(config, choose_formats(tensors, config, kind)), tensors, config)
        turns[f"graph {kind}"] = lambda session=session: time_session(session, prompt, tokens)  # type: ignore[misc]
    return turns


def measure(turns: dict[str, Turn], count: int) -> dict[str, dict[str, float]]:
    """The least milliseconds of each, after a turn that only warms up."""
    best: dict[str, dict[str, float]] = {}
    for number in range(count + 1):
        for name, turn in turns.items():
            times = turn()
            if number:
                old = best.setdefault(name, times)
                best[name] = {key: min(times[key], old[key]) for key in times}
    return best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="glm-10m")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--no-foreign", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model(options.preset)
    turns = our_turns(model, options.prompt, options.tokens)
    if options.no_foreign:
        best = measure(turns, options.turns)
    else:
        with running_llama(model, options.prompt, options.tokens) as theirs:
            best = measure(turns | theirs, options.turns)
    if options.json:
        print(json.dumps(best))
        return
    print(
        f"{options.preset}, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters; a prompt of "
        f"{options.prompt}, {options.tokens} tokens written, the best of {options.turns} turns; torch "
        f"{torch.__version__}, onnxruntime {onnxruntime.__version__}, xllamacpp {PINS['xllamacpp']}\n"
    )
    print(f"{'':18}{'ms a token':>12}{'x torch':>10}{'x graph fp32':>14}{'ms prompt':>12}{'x torch':>10}")
    torch_times, ours = best["torch eager"], best["graph fp32"]
    for name, times in best.items():
        print(
            f"{name:18}{times['decode']:12.3f}{torch_times['decode'] / times['decode']:10.1f}"
            f"{ours['decode'] / times['decode']:14.1f}{times['prefill']:12.2f}"
            f"{torch_times['prefill'] / times['prefill']:10.1f}"
        )


if __name__ == "__main__":
    main()
