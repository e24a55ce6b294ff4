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
SPEED = {"fp32": 4e-4, "int8": 1e-4, "int4": 5e-5}


def further(rows):
    """Microseconds that a byte takes longer from behind the cache."""
    known = [1e6 * (1 / away - 1 / NEAR) for away in AWAY.values()]
    return float(np.interp(np.log(rows), np.log(list(AWAY)), known))


def law(operation, shape, batch, tokens, past, form="fp32"):
    """A device of a simple kind, in microseconds."""
    rows = batch * tokens
    if operation in ("run", "layer"):
        return {"run": RUN, "layer": LAYER}[operation]
    if operation == "linear":
        inputs, outputs = shape
        return 2 + SPEED[form] * inputs * outputs + 1e-5 * rows * inputs * outputs + 1e-3 * rows * outputs
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


def make_table():
    entries = tuple(
        LatencyEntry(
            operation=operation, shape=shape, format=form, batch=batch, tokens=tokens, past=past,
            microseconds=law(operation, shape, batch, tokens, past, form),
        )
        for operation, shape, form, batch, tokens, past in measured()
    )  # fmt: skip
    return LatencyTable(threads=1, reads=READS, entries=entries)


def write_device(path, threads=1):
    """Write the device's file."""
    device = DeviceFile(
        made="2027-01-01T00:00:00+00:00",
        system="Linux 6",
        runtime="1.32.0",
        processor=Processor(name="x", architecture="x86_64", features={}, cores=2.0, cache_bytes=0),
        memory=Memory(limit_bytes=2**32, available_bytes=2**31),
        watts=None,
        latency=make_table().model_copy(update={"threads": threads}),
    )
    device.save(path)
    return path
