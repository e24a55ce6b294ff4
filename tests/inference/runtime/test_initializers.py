"""What fills a graph stands for the matrix's values, whatever the scheme: ONNX's definition of DequantizeLinear."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_glms import config_of, random_glm, small_config

from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.architecture import read_architecture
from fedglm.inference.runtime.initializers import (
    CODES,
    FLOAT,
    INT4,
    INT8,
    SCALES,
    ZEROS,
    fill,
    fits_int4,
    make_rotary_table,
    name_part,
)
from fedglm.inference.runtime.skeleton import Initializer
from fedglm.inference.weights.quantized import QuantizedMatrix


@st.composite
def matrices(draw):
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 70))
    low = draw(st.integers(-128, 127))
    high = draw(st.integers(low, min(low + draw(st.sampled_from([2, 3, 15, 255])), 127)))
    block = draw(st.sampled_from([16, 32, 48, 64, 1000]))
    generator = np.random.default_rng(draw(st.integers(0, 9)))
    blocks = (rows, -(-columns // block))
    zeros = generator.integers(low, high, blocks, dtype=np.int8, endpoint=True) if draw(st.booleans()) else None
    return QuantizedMatrix(
        codes=generator.integers(low, high, (rows, columns), dtype=np.int8, endpoint=True),
        scales=generator.uniform(0, 1, blocks).astype(np.float16).astype(np.float32),
        zeros=zeros,
        block=block,
        low=low,
        high=high,
    )


def unpack(array, shape):
    """INT4 as ONNX packs it: the first of two in the low half of a byte."""
    nibbles = np.stack([array & 15, array >> 4], axis=1).reshape(-1)[: np.prod(shape)].astype(np.int8)
    return np.where(nibbles > 7, nibbles - 16, nibbles).reshape(shape)


@given(matrix=matrices(), block=st.sampled_from([16, 32]), transposed=st.booleans(), narrow=st.booleans())
def test_codes_scales_and_zeros_stand_for_the_values(matrix, block, transposed, narrow):
    rows, columns = matrix.shape
    shapes = {CODES: (rows, columns), SCALES: (rows, -(-columns // block)), ZEROS: (rows, -(-columns // block))}
    parts = {}
    for part, shape in shapes.items():
        wanted = Initializer(
            name=name_part("w", part, block=0 if part == CODES else block, transposed=transposed),
            dtype=FLOAT if part == SCALES else INT4 if narrow else INT8,
            shape=shape[::-1] if transposed else shape,
        )
        fits = (fits_int4(matrix) or not narrow or part == SCALES) and (
            part == CODES or matrix.block % block == 0 or matrix.block >= columns
        )
        if not fits:
            with pytest.raises(InferenceError, match="do not fit"):
                fill(wanted, {"w": matrix}, None)
            return
        array = fill(wanted, {"w": matrix}, None)
        array = unpack(array, wanted.shape) if wanted.dtype == INT4 else array
        parts[part] = array.T if transposed else array
    zeros, scales = (np.repeat(parts[part], block, axis=1)[:, :columns] for part in (ZEROS, SCALES))
    assert ((parts[CODES].astype(np.float32) - zeros) * scales == matrix.dequantize()).all()


@given(matrix=matrices(), transposed=st.booleans())
def test_a_float_graph_takes_the_values(matrix, transposed):
    shape = matrix.shape[::-1] if transposed else matrix.shape
    wanted = Initializer(name=name_part("w", "", transposed=transposed), dtype=FLOAT, shape=shape)
    found = fill(wanted, {"w": matrix}, None)
    assert found.flags.c_contiguous
    assert ((found.T if transposed else found) == matrix.dequantize()).all()


def test_rotary_tables_are_those_of_transformers():
    model = random_glm(small_config(max_position_embeddings=2048))
    architecture = read_architecture(config_of(model))
    exact = np.arange(2048)[:, None] * 10_000.0 ** -(np.arange(0, 10, 2) / 10)
    # Roundings to float32: of the exponent, which the power multiplies by ln(base), the power, its inverse, the angle.
    limit = exact * (np.log(10_000.0) + 3) * 2.0**-24 + 2.0**-23
    for function in (np.cos, np.sin):
        assert (np.abs(make_rotary_table(architecture, function) - function(exact)) <= limit).all()
    angles = np.arange(2048, dtype=np.float32)[:, None] * model.model.rotary_emb.inv_freq.numpy()
    # From the same exponents: both round the power (torch to the last bit or the one before), its inverse, the angle.
    limit = exact * 7 * 2.0**-24 + 2.0**-23
    assert (np.abs(make_rotary_table(architecture, np.cos) - np.cos(angles)) <= limit).all()


@pytest.mark.parametrize(
    ("name", "dtype", "words"),
    [
        ("w:T", INT8, "of ONNX type 3, not"),
        ("w:codes", FLOAT, "of ONNX type 1, not"),
        ("w:scales", FLOAT, "do not fit the graph's of 0"),
        ("w:scales:0", FLOAT, "do not fit the graph's of 0"),
        ("w:scales:many", FLOAT, "do not fit the graph's of 0"),
        ("w:means", FLOAT, "no such part"),
        ("v", FLOAT, "wants v, which the model does not have"),
    ],
)
def test_a_graph_that_asks_for_what_there_is_not_is_refused(name, dtype, words):
    matrix = QuantizedMatrix(
        codes=np.zeros((4, 16), np.int8), scales=np.zeros((4, 1), np.float32), block=16, low=-8, high=7
    )
    shape = (16, 4) if name.endswith("T") else (4, 16)
    with pytest.raises(InferenceError, match=words):
        fill(Initializer(name=name, dtype=dtype, shape=shape), {"w": matrix}, None)
