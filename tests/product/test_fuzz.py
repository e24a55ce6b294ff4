"""A million hostile blobs: an error or a valid update, never another exception, a hang, or more memory than the model.

    FEDGLM_FUZZ=1000000 FEDGLM_FUZZ_SEED=... python -m pytest tests/product/test_fuzz.py -m slow -s

The seed is fresh unless it is given, and a failure names it. Each blob follows from the seed and its number alone, so
`python tests/product/test_fuzz.py SEED 1 NUMBER` repeats a single one.
"""

import faulthandler
import itertools
import os
import random
import resource
import secrets
import subprocess
import sys
import tracemalloc
from time import monotonic

import numpy as np
import pytest
from source_tree import SUPPORT
from valid_update import is_valid_update

from fedglm.compression.codec import CodecError, codec_names, codec_options, make_codec
from fedglm.compression.downlink import ModelVersions, Replica
from fedglm.compression.layout import Layout
from fedglm.compression.wire.envelope import DOWNLINK, UPDATE, varint, wrap, wrap_update

LAYOUT = Layout(("square", "wide", "tall", "bias", "scale"), ((40, 32), (8, 100), (70, 3), (20,), ()))
SIZES = (LAYOUT.size, 300, 2500)
HEAD = 9
LIMIT_S = 5.0
HANG_S = 60
"""A whole batch may take this long before the process is killed with a traceback; numba cannot be interrupted."""
BATCH = 500
ROOM = 300_000
"""Bytes that a decoder may take besides twice the model: tables, buffers, Python's own objects."""
GROWTH = 64 << 20
CHOICES = {"density": (0.005, 0.05, 1.0), "coder": ("smallest", "fast"), "rank": (1, 3)}
"""What is tried of each option that a codec has; options that are not here keep their default."""


def vectors(size):
    rng = np.random.default_rng(size)
    normal = rng.standard_normal(size).astype(np.float32)
    clustered = -np.abs(normal) * np.where(np.arange(size) % 32 < 4, 9, 1)  # rows, columns and signs to learn from
    sparse = np.where(rng.random(size) < 0.02, normal, np.float32(0))
    return normal, sparse, normal * np.exp(4 * normal[::-1]), clustered.astype(np.float32)


def good_blobs():
    """(size, blob) of every codec, over kinds of vectors, with and without a layout."""
    for name in codec_names():
        options = [option for option in CHOICES if option in codec_options(name)]
        for size in SIZES:
            layout = LAYOUT if size == LAYOUT.size else None
            for chosen in itertools.product(*(CHOICES[option] for option in options)):
                codec = make_codec(name, layout=layout, **dict(zip(options, chosen, strict=True)))
                for vector in vectors(size):
                    yield size, codec.encode(vector)


def good_messages():
    """Deltas over one to three versions and snapshots, on both grids, as (version held, vector held, message)."""
    for grid in ("fp16", "fp32"):
        for name in codec_names():
            versions = ModelVersions(vectors(LAYOUT.size)[0], LAYOUT.sha256, make_codec(name, layout=LAYOUT), grid=grid)
            held = [versions.vector]
            for scale in (0.1, 0.01, 1.0):
                versions.publish((vectors(LAYOUT.size)[1] * np.float32(scale)).astype(np.float32))
                held.append(versions.vector)
            for version, vector in enumerate(held[:-1]):
                yield version, vector, versions.message_since(version)
            yield 0, held[0], versions.snapshot()


class Hostile:
    """Makes blobs from good ones."""

    def __init__(self):
        self.blobs = list(good_blobs())
        self.messages = list(good_messages())
        self.ids = [make_codec(name).wire_id for name in codec_names()]

    def update(self, rng):
        """A size and a blob for `decode`."""
        size, good = rng.choice(self.blobs)
        kind = rng.random()
        if kind < 0.05:
            return size, rng.randbytes(rng.randrange(200))
        if kind < 0.1:
            return size, good[: rng.randrange(len(good))]
        if kind < 0.25:
            size = rng.randint(1, 3000)
            return size, wrap_update(rng.choice(self.ids), size, rng.randbytes(rng.choice((3, 30, 300, 4 * size))))
        if kind < 0.35:
            blob = bytearray(good)
            mutate(rng, blob, 0)
            return size, bytes(blob)
        if kind < 0.4:  # another codec's payload, or an honest header around lies about the size
            return size, wrap(UPDATE, rng.choice(self.ids), good[HEAD:])
        body = bytearray(good[HEAD:])
        mutate(rng, body, len(varint(size)))
        return size, wrap(UPDATE, good[3], body)

    def message(self, rng):
        """What a replica holds, and a message for it."""
        version, vector, good = rng.choice(self.messages)
        if rng.random() < 0.1:
            return version, vector, good[: rng.randrange(len(good))]
        body = bytearray(good[HEAD:])
        if rng.random() < 0.5 and good[3] == 1:
            self.spoil_delta(rng, body)
        else:
            mutate(rng, body, 0)
        return version, vector, wrap(DOWNLINK, good[3] if rng.random() < 0.95 else rng.randrange(256), body)

    def spoil_delta(self, rng, body):
        """Put another blob, with a good CRC, in the place of the first delta."""
        start = 1 + 8 + 32 + 2  # versions below 128 take a byte each
        _, blob = self.update(rng)
        length, at, shift = 0, start, 0
        while True:
            length |= (body[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if body[at - 1] < 0x80:
                break
        body[start : at + length] = varint(len(blob)) + blob


def mutate(rng, data, keep):
    """Change, cut, insert or repeat some bytes after the first `keep`; half of the time close to them."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if len(data) <= keep:
            return
        last = min(len(data), keep + 24) if rng.random() < 0.5 else len(data)
        at = rng.randrange(keep, last)
        length = rng.choice((1, 1, 2, 4, 9))
        action = rng.randrange(7)
        if action == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif action == 2:
            data[at : at + length] = rng.randbytes(length)
        elif action == 3:
            data[at : at + length] = rng.choice((b"\0", b"\xff")) * length
        elif action == 4:
            del data[at : at + length]
        elif action == 5:
            data[at:at] = rng.randbytes(length)
        else:
            data[at:at] = varint(rng.randrange(1 << rng.randrange(1, 63)))


def try_message(version, vector, blob):
    replica = Replica(version, vector, LAYOUT.sha256)
    held = replica.vector
    try:
        replica.apply(blob)
    except CodecError:
        assert replica.version == version
        assert replica.vector is held
        return False
    assert replica.vector.shape == vector.shape
    assert np.isfinite(replica.vector).all()
    return True


def one(hostile, seed, number):
    """Make and try blob `number`; every 500th under the eyes of tracemalloc."""
    rng = random.Random((seed << 40) + number)  # noqa: S311 - a test's order
    if rng.random() < 0.2:
        attempt, given, size = try_message, hostile.message(rng), LAYOUT.size
    else:
        attempt, given = is_valid_update, hostile.update(rng)
        size = given[0]
    traced = number % BATCH == 0
    if traced:
        tracemalloc.start()
    started = monotonic()
    try:
        taken = attempt(*given)
        seconds = monotonic() - started
        if traced:
            # The dense copy that the test itself asks for is the third.
            assert tracemalloc.get_traced_memory()[1] <= 3 * 4 * size + 2 * len(given[-1]) + ROOM
    except Exception as exc:
        raise AssertionError(
            f"FEDGLM_FUZZ_SEED={seed}, blob {number} of {len(given[-1])} bytes, {given[-1][:60].hex()}...: {exc!r}"
        ) from exc
    finally:
        if traced:
            tracemalloc.stop()
    assert seconds < LIMIT_S, f"FEDGLM_FUZZ_SEED={seed}, blob {number}: {seconds:.1f} s"
    return taken


def fuzz(seed, count, first=0):
    """Try blobs `first` to `first + count`; returns how many were valid."""
    hostile = Hostile()
    return sum(one(hostile, seed, number) for number in range(first, first + count))


def main():
    """In a process of its own, so that a hang or a crash in compiled code ends this and not the tests."""
    seed, count, first = int(sys.argv[1]), int(sys.argv[2]), int((sys.argv[3:] or ["0"])[0])
    hostile = Hostile()
    valid, before = 0, None
    for start in range(first, first + count, BATCH):
        print(start, end="\r", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        valid += sum(one(hostile, seed, number) for number in range(start, min(start + BATCH, first + count)))
        if start >= first + 4 * BATCH and before is None:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faulthandler.cancel_dump_traceback_later()
    grown = 0 if before is None else 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < GROWTH, f"FEDGLM_FUZZ_SEED={seed}: {grown >> 20} MiB more than after the first blobs"
    print(f"{count} blobs, {valid} of them valid, {grown >> 10} KiB more memory than after the first")


def fresh_seed():
    return int(os.environ.get("FEDGLM_FUZZ_SEED") or secrets.randbelow(1 << 32))


def test_two_thousand_hostile_blobs():
    valid = fuzz(fresh_seed(), 2000)
    assert 0 < valid < 2000  # else the mutations do not reach the inside, or nothing is checked


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_hostile_blobs():
    seed, count = fresh_seed(), int(os.environ.get("FEDGLM_FUZZ", "1_000_000"))
    print(f"FEDGLM_FUZZ_SEED={seed}, {count} blobs")
    command = [sys.executable, __file__, str(seed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, env=SUPPORT)
    assert done.returncode == 0, f"FEDGLM_FUZZ_SEED={seed}\n{done.stderr[-4000:]}"
    print(done.stdout)


if __name__ == "__main__":
    main()
