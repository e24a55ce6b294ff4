"""What every blob that decodes has to be, whoever made it."""

import numpy as np

from fedglm.compression.codec import CodecError, decode


def is_valid_update(size, blob):
    """Decode, and hold what comes out to all that an `Update` promises; False where the blob is refused."""
    try:
        update = decode(blob, size=size)
    except CodecError:
        return False
    dense = update.to_dense()
    assert dense.shape == (size,)
    assert dense.dtype == np.float32
    assert np.isfinite(dense).all()
    if hasattr(update, "positions"):
        assert update.positions.shape == update.values.shape
        assert (np.diff(update.positions, prepend=-1) > 0).all()
        assert (update.positions < size).all()
    return True
