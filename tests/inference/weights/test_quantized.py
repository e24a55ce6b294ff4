"""Quantized matrices: their values by definition, and what is refused."""

import numpy as np
import pytest

from fedglm.inference.errors import InferenceError
from fedglm.inference.weights.quantized import QuantizedMatrix


def make(**changes):
    codes = np.array([[-2, 1, 0], [7, -8, 3]], dtype=np.int8)
    scales = np.array([[0.5, 2.0], [0.25, 1.0]], dtype=np.float32)
    return QuantizedMatrix(**{"codes": codes, "scales": scales, "block": 2, "low": -8, "high": 7} | changes)


def test_a_value_is_code_less_zero_point_times_scale():
    zeros = np.array([[1, 0], [0, 3]], dtype=np.int8)
    assert make().dequantize().tolist() == [[-1.0, 0.5, 0.0], [1.75, -2.0, 3.0]]
    assert make(zeros=zeros).dequantize().tolist() == [[-1.5, 0.0, 0.0], [1.75, -2.0, 0.0]]
    assert (make().shape, make().levels, make().dequantize().dtype) == ((2, 3), 16, np.float32)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"codes": np.zeros((2, 3), dtype=np.int16)}, "int8"),
        ({"codes": np.zeros(3, dtype=np.int8)}, "two dimensions"),
        ({"block": 3}, "scales"),
        ({"block": 0}, "blocks of 0"),
        ({"low": -4}, "run from -8 to 7"),
        ({"high": 200}, "no int8 code"),
        ({"zeros": np.zeros((2, 1), dtype=np.int8)}, "zero points"),
        ({"zeros": np.zeros((2, 2), dtype=np.int16)}, "int8"),
        ({"scales": np.full((2, 2), 1 / 3, dtype=np.float32)}, "float16"),
        ({"scales": np.full((2, 2), np.nan, dtype=np.float32)}, "finite"),
        ({"scales": np.full((2, 2), -1.0, dtype=np.float32)}, "not negative"),
        ({"scales": np.full((2, 2), 1e6, dtype=np.float32)}, "float16"),
    ],
)
def test_what_no_scheme_writes_is_refused(changes, reason):
    with pytest.raises(InferenceError, match=reason):
        make(**changes)
