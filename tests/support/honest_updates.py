"""Updates of sites that do as they should."""

import numpy as np

from fedglm.compression.codec import make_codec

SIZE, CODEC = 400, make_codec("topk-fp16", density=0.25)


def honest(count, seed=0, together=0.5):
    """Updates that have a direction in common, and one of their own."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=SIZE)
    return [(together * common + rng.normal(size=SIZE)).astype(np.float32) * 0.01 for _ in range(count)]
