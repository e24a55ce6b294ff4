"""How well the latencies of single operations predict those of whole models: 12 GLMs that the table never saw.

    python benchmarks/latency_table.py [--json]

One thread, its time on its core; for each model the least of many runs
before and after the probe, of one token after others and of reading those.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from fedglm.autoglm.light.graph.formats import GraphFormat, choose_formats
from fedglm.autoglm.light.graph.model import build_skeleton
from fedglm.inference.device.measurement import measure_latencies
from fedglm.inference.runtime.architecture import read_architecture
from fedglm.inference.runtime.graph_session import GraphSession
from fedglm.inference.weights.quantized import QuantizedMatrix

# Drawn once, and looked at after the table's formulas stood.
HELD_OUT: tuple[tuple[GraphFormat, int, int, int, int, int, int, int, int, int], ...] = (
    # format, hidden, intermediate, layers, heads, kv heads, head dimension, vocabulary, batch, past
    ("fp32", 128, 288, 11, 2, 1, 32, 256, 1, 32),
    ("int8", 320, 768, 4, 3, 1, 32, 256, 4, 120),
    ("int4", 352, 928, 2, 3, 1, 64, 512, 4, 64),
    ("fp32", 576, 1536, 9, 9, 1, 64, 12000, 4, 32),
    ("int8", 160, 384, 9, 1, 1, 64, 256, 1, 64),
    ("int4", 384, 992, 3, 2, 1, 64, 512, 1, 120),
    ("fp32", 480, 1024, 10, 3, 1, 64, 12000, 1, 120),
    ("int8", 576, 1472, 8, 6, 2, 64, 256, 1, 32),
    ("int4", 544, 1376, 4, 6, 1, 64, 512, 1, 32),
    ("fp32", 608, 1536, 10, 10, 2, 32, 256, 1, 32),
    ("int8", 384, 960, 5, 8, 2, 32, 2000, 4, 64),
    ("int4", 192, 512, 9, 2, 2, 64, 256, 4, 64),
)
BLOCK = 128
LIMITS = {"int8": 127, "int4": 7}
SECONDS, TURNS = 0.6, 4  # for each of the two, in turns


def make_config(hidden, intermediate, layers, heads, kv_heads, head_dim, vocabulary) -> dict[str, Any]:
    """The ``config.json`` of a GLM."""
    return {
        "model_type": "glm",
        "architectures": ["GlmForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        "tie_word_embeddings": True,
        "attention_bias": True,
        "hidden_act": "silu",
    }


def make_tensors(config, form):
    """Random weights; matrices in codes unless the format is fp32."""
    random = np.random.default_rng(7)
    tensors = {}
    for name, shape in read_architecture(config).tensor_shapes().items():
        if len(shape) == 1 or form == "fp32":
            tensors[name] = random.standard_normal(shape).astype(np.float32) * 0.02
            continue
        limit, block = LIMITS[form], min(BLOCK, shape[1])
        tensors[name] = QuantizedMatrix(
            codes=random.integers(-limit, limit + 1, shape).astype(np.int8),
            scales=np.full((shape[0], -(-shape[1] // block)), 2**-10, np.float32),
            block=block,
            low=-limit,
            high=limit,
        )
    return tensors


def measure(config, form, batch, past):
    """Least milliseconds of one more token, and of reading the past."""
    tensors = make_tensors(config, form)
    session = GraphSession.open(build_skeleton(config, choose_formats(tensors, config, form)), tensors, config)
    ids = np.arange(batch * past).reshape(batch, past) % config["vocab_size"]
    _, cache = session.run(ids)
    least = [np.inf, np.inf]
    for _ in range(TURNS):
        for kind, arguments in enumerate([(ids[:, :1], cache), (ids,)]):
            end = time.perf_counter() + SECONDS / TURNS
            while True:
                begun = time.thread_time()
                session.run(*arguments)
                least[kind] = min(least[kind], time.thread_time() - begun)
                if time.perf_counter() > end:
                    break
    return [1e3 * each for each in least]


def main() -> None:
    """Print predicted beside measured times, and how far they are apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    configs = [make_config(*shape) for _, *shape, _, _ in HELD_OUT]
    asked = [(config, form, batch, past) for config, (form, *_, batch, past) in zip(configs, HELD_OUT, strict=True)]
    before = [measure(*each) for each in asked]
    start = time.perf_counter()
    table = measure_latencies()
    probed = time.perf_counter() - start
    after = [measure(*each) for each in asked]
    rows = [
        (form, shape, batch, past, np.minimum(first, second), table.predict(config, form, batch, past))
        for (form, *shape, batch, past), config, first, second in zip(HELD_OUT, configs, before, after, strict=True)
    ]
    figures: dict[str, float] = {"probe_s": probed}
    for kind, name in enumerate(("decode", "prefill")):
        real, guessed = (np.array([row[column][kind] for row in rows]) for column in (4, 5))
        figures[f"{name}_rank_correlation"] = float(spearmanr(real, guessed).statistic)
        figures[f"{name}_median_error"] = float(np.median(np.abs(guessed / real - 1)))
    if as_json:
        print(json.dumps(figures))
        return
    shown = Table(box=box.SIMPLE_HEAD)
    for heading in ("format", "H x I x layers", "batch", "past", "decode ms", "predicted", "prefill ms", "predicted"):
        shown.add_column(heading, justify="right")
    for form, (hidden, intermediate, layers, *_), batch, past, real, guessed in rows:
        times = (f"{each:.3f}" for pair in zip(real, guessed, strict=True) for each in pair)
        shown.add_row(form, f"{hidden} x {intermediate} x {layers}", str(batch), str(past), *times)
    Console(width=100).print(shown)
    for name, value in figures.items():
        print(f"{name}: {value:.3f}")


if __name__ == "__main__":
    main()
