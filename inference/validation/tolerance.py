"""How far logits may be from the expected ones: limits that follow from arithmetic, not from what one machine gave.

**Exact activations** (accuracy level 0). Kernels add up in different orders. A sum of d products in float32 has a
relative error of about sqrt(d) u, u = 2**-24, as roundings are as often up as down (Higham and Mary, "A new approach to
probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5), 2019, theorem 2.4). The products on the way through
the model follow one another, so their errors add up; `_SAFETY` = 4 is for both machines, and for the constant.

**INT8 activations** (accuracy level 4). The input of a quantized Linear is rounded block by block, of B columns: the
step is the greatest magnitude m of the block / 127, and the error of an element is spread evenly over a step, so that
its variance is (m / 127)**2 / 12. As m**2 is at most the sum of the block's squares, the error is at most
sqrt(B / 12) / 127 of the input's root mean square: 2.6 % for B = 128, 1.3 % for 32. (Activations that fill their blocks
evenly have a third of that.) Errors of different products are independent: their squares add up. What is assumed, not
proved, is that the residual stream does not amplify a relative error on its way to the logits.

Both are relative to the scale of the logits: of those seen, or of what random activations would give where that is
greater, for a classifier that is undecided has logits near 0 and errors as any.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from fedglm.inference.release.golden import choose_outputs
from fedglm.inference.runtime.architecture import FINAL_NORM, Architecture
from fedglm.inference.runtime.initializers import SCALES, TRANSPOSED, Tensors
from fedglm.inference.runtime.skeleton import read_initializers, unpack_skeleton
from fedglm.inference.weights.quantized import QuantizedMatrix

TIE: Final = 6.0
"""A likeliest token may change where it leads by less than so many tolerances: the difference of two errors of one
deviation each exceeds them with probability 2e-5."""

_UNIT_ROUNDOFF: Final = 2.0**-24
_SAFETY: Final = 4.0
_ROWS: Final = 64  # of the output layer, by which its scale is estimated


def exact_tolerance(architecture: Architecture, length: int) -> float:
    """Return the greatest relative error of a logit with exact activations.

    Args:
        architecture: The model's shape.
        length: Number of positions that attention adds up.
    """
    sums = [architecture.hidden]
    for layer in architecture.layers:
        heads = layer.heads * architecture.head_dim
        sums += [architecture.hidden, architecture.head_dim, length, heads, architecture.hidden, layer.intermediate]
    return _SAFETY * _UNIT_ROUNDOFF * sum(map(math.sqrt, sums))


def rounding_tolerance(skeletons: Iterable[bytes]) -> float:
    """Return the greatest relative root mean square of the errors that rounded activations make; 0 where none is.

    Args:
        skeletons: The model's graphs; that with the coarsest rounding counts.
    """
    return max(math.sqrt(sum(block / 12 for block in _list_blocks(each))) / 127 for each in skeletons)


def _list_blocks(skeleton: bytes) -> list[int]:
    """List the block of each quantized product of a graph; products of one input are counted as if of several."""
    names = [one.name.split(":") for one in read_initializers(unpack_skeleton(skeleton))]
    return [int(words[2]) for words in names if words[1:2] == [SCALES] and words[-1] == TRANSPOSED]


def logit_scale(tensors: Tensors, architecture: Architecture, logits: npt.NDArray[np.floating]) -> float:
    """Return the scale that errors of logits are relative to.

    It is the root mean square of the logits seen, or where that is greater of the logits that independent activations
    would give: those of the last norm have a mean square of 1 before its weights.

    Args:
        tensors: The model's.
        architecture: Its shape.
        logits: Logits of any shape.
    """
    seen = math.sqrt(float(np.mean(np.square(logits, dtype=np.float64))))
    head, norm = tensors[architecture.head_source], tensors[FINAL_NORM]
    rows = _dequantize_rows(head, choose_outputs(architecture.outputs, min(_ROWS, architecture.outputs)))
    assert isinstance(norm, np.ndarray)  # noqa: S101 - a norm is a vector, which no quantizer takes
    expected = math.sqrt(float(np.square(rows * norm, dtype=np.float64).sum(axis=1).mean()))
    return max(seen, expected)


def _dequantize_rows(
    tensor: npt.NDArray[np.float32] | QuantizedMatrix, rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    if not isinstance(tensor, QuantizedMatrix):
        return tensor[rows]
    return QuantizedMatrix(
        codes=tensor.codes[rows],
        scales=tensor.scales[rows],
        zeros=None if tensor.zeros is None else tensor.zeros[rows],
        block=tensor.block,
        low=tensor.low,
        high=tensor.high,
    ).dequantize()
