"""Random matrices, and the schemes that may quantize them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from fedglm.autoglm.light.quantization.scheme import Codes, Scheme

INTEGERS: tuple[Codes, ...] = ("int8", "int4", "int3", "int2")
BLOCKS = (8, 32, "row", "tensor")

schemes = st.one_of(
    st.builds(Scheme, codes=st.sampled_from(INTEGERS), block=st.sampled_from(BLOCKS), symmetric=st.booleans()),
    st.builds(
        Scheme,
        codes=st.just("ternary"),
        block=st.sampled_from(BLOCKS),
        zeros=st.sampled_from([None, 0.0, 0.31, 0.5, 0.75]),
    ),
    st.builds(Scheme, codes=st.just("sparse-ternary"), block=st.sampled_from(BLOCKS)),
)


def random_weights(rows: int = 6, columns: int = 40, seed: int = 0) -> torch.Tensor:
    """Rows of different size, as trained ones have, (rows, columns), float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 0.05 * torch.rand(rows, 1, generator=generator).exp()
