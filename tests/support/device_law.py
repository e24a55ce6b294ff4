"""A device whose operations follow a law, and the table that would be measured on it."""

import itertools

import numpy as np

from fedglm.inference.device.device_file import DeviceFile
from fedglm.inference.device.latency_table import LatencyEntry, LatencyTable, ReadRate
from fedglm.inference.device.processor import Memory, Processor

RUN, LAYER = 12.0, 3.0
NEAR, AWAY = 4e10, {1: 1e10, 8: 5e9}
"""Bytes a second from a near cache, and from behind it for one token and for eight."""
READS = tuple(
    ReadRate(format=form, rows=rows, held_bytes=held, bytes_per_s=rate)
    for form in ("fp32", "int8", "int4")
    for rows, away in AWAY.items()
    for held, rate in ((2**20, NEAR), (2**22, away))
)


WEIGHT = {"fp32": 4, "int8": 1 + 4 / 128, "int4": 0.5 + 4 / 128}
MULTIPLY = {"fp32": 1e-5, "int8": 1e-5, "int4": 1e-5}
SPEED = {"fp32": 4e-4, "int8": 1e-4, "int4": 5e-5}


def further(rows):
    """Microseconds that a byte takes longer from behind the cache."""
    known = [1e6 * (1 / away - 1 / NEAR) for away in AWAY.values()]
    return float(np.interp(np.log(rows), np.log(list(AWAY)), known))


def law(operation, shape, batch, tokens, past, form="fp32", multiply=MULTIPLY):
    """A device of a simple kind, in microseconds; `multiply` is what a product takes, by format."""
    rows = batch * tokens
    if operation in ("run", "layer"):
        return {"run": RUN, "layer": LAYER}[operation]
    if operation == "linear":
        inputs, outputs = shape
        return 2 + SPEED[form] * inputs * outputs + multiply[form] * rows * inputs * outputs + 1e-3 * rows * outputs
    if operation == "attention":
        heads, kv_heads, head_dim = shape
        total = past + tokens
        return 5 + 2e-3 * batch * kv_heads * head_dim * total + 1e-4 * rows * heads * total * head_dim
    return 1.5 + 1e-3 * rows * int(np.prod(shape))


def measured():
    for form, inputs, outputs, rows in itertools.product(SPEED, (64, 256, 1024), (64, 1024), (1, 8, 64)):
        yield "linear", (inputs, outputs), form, rows, 1, 0
    for shape in ((64,), (512,)):
        for operation in ("norm", "add", "gate"):
            yield from ((operation, shape, "fp32", batch, tokens, 0) for batch, tokens in ((1, 1), (8, 1), (1, 64)))
    for shape in ((2, 32), (8, 64)):
        yield from (("rotary", shape, "fp32", batch, 1, 0) for batch in (1, 8, 64))
    for shape in ((4, 2, 16), (10, 2, 32), (16, 4, 64)):
        for fed in ((1, 1, 0), (1, 1, 256), (8, 1, 64), (1, 64, 0), (1, 16, 0)):
            yield "attention", shape, "fp32", *fed
    yield "run", (), "fp32", 1, 1, 0
    yield "layer", (), "fp32", 1, 1, 0


def make_table(multiply=MULTIPLY):
    """A table of that device."""
    entries = tuple(
        LatencyEntry(
            operation=operation, shape=shape, format=form, batch=batch, tokens=tokens, past=past,
            microseconds=law(operation, shape, batch, tokens, past, form, multiply),
        )
        for operation, shape, form, batch, tokens, past in measured()
    )  # fmt: skip
    return LatencyTable(threads=1, reads=READS, entries=entries)


SLOW_READER = {"fp32": 1e-6, "int8": 1e-4, "int4": 2e-4}
"""Products of a device on which codes are fast to read and slow to multiply: another format for each phase."""


def make_device(multiply=MULTIPLY, *, name="Toaster 3000", memory=2**30):
    """A file of that device."""
    return DeviceFile(
        made="2027-01-01T12:00:00+00:00",
        system="Linux 6.1",
        runtime="1.32.0",
        processor=Processor(name=name, architecture="aarch64", features={"neon": True}, cores=1, cache_bytes=2**20),
        memory=Memory(limit_bytes=memory, available_bytes=memory // 2),
        watts=None,
        latency=make_table(multiply),
    )


def write_device(path, threads=1):
    """Write a file of that device."""
    device = make_device()
    latency = device.latency.model_copy(update={"threads": threads})
    device.model_copy(update={"latency": latency}).save(path)
    return path


def config(hidden=96, intermediate=200, layers=3, heads=4, kv_heads=2, head_dim=32, vocab=300, **more):
    return {
        "model_type": "glm",
        "architectures": ["GlmForCausalLM"],
        "vocab_size": vocab,
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
    } | more
