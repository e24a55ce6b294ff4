"""A table of a device whose operations follow a law predicts models exactly as the law does."""

import math

import numpy as np
import pytest
from device_law import LAYER, READS, RUN, SPEED, WEIGHT, config, further, law, make_table
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglm.inference.device.latency_table import LatencyTable
from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.architecture import EMBEDDING, read_architecture

TABLE = make_table()


def filled_up(inputs, form):
    """Columns that a kernel computes: whole blocks of 128, or one power of two below that."""
    if form == "fp32":
        return inputs
    block = min(128, max(16, 1 << (inputs - 1).bit_length()))
    return -(-inputs // block) * block


def by_law(config, form, batch, tokens, past, layers):
    hidden, d = config["hidden_size"], config["head_dim"]

    def linears(shapes, rows):
        real = [(filled_up(inputs, form), outputs) for inputs, outputs in shapes]
        near = sum(law("linear", shape, *rows, 0, form) for shape in real)
        return near + share * further(math.prod(rows)) * WEIGHT[form] * sum(
            inputs * outputs for inputs, outputs in real
        )

    weights = sum(hidden * d * 2 * (h + kv) + 3 * hidden * i for i, h, kv in layers) + hidden * config["vocab_size"]
    share = np.clip(
        np.log(WEIGHT[form] * weights / 2**20) / np.log(4), 0, 1
    )  # of the way to what lies behind the cache
    total = RUN + (1 if form == "fp32" else 3) * law("add", (hidden,), batch, tokens, 0)
    for intermediate, heads, kv_heads in layers:
        joined = (heads + 2 * kv_heads) * d
        shapes = [(hidden, joined), (heads * d, hidden), (hidden, 2 * intermediate), (intermediate, hidden)]
        total += LAYER + linears(shapes, (batch, tokens))
        total += law("attention", (heads, kv_heads, d), batch, tokens, past)
        total += law("rotary", (heads + kv_heads, d), batch, tokens, 0) + law("gate", (intermediate,), batch, tokens, 0)
        total += 4 * law("norm", (hidden,), batch, tokens, 0) + 3 * law("add", (joined,), batch, tokens, 0)
    total += law("norm", (hidden,), batch, 1, 0)
    return (total + linears([(hidden, config["vocab_size"])], (batch, 1))) / 1e3


@given(
    hidden=st.integers(32, 1500),
    intermediate=st.integers(32, 3000),
    layers=st.integers(1, 6),
    heads=st.sampled_from([(1, 1), (4, 2), (12, 3)]),
    form=st.sampled_from(sorted(SPEED)),
    batch=st.integers(1, 16),
    past=st.integers(1, 300),
)
@settings(max_examples=50)
def test_a_law_is_found_again(hidden, intermediate, layers, heads, form, batch, past):
    asked = config(hidden, intermediate, layers, *heads)
    found = TABLE.predict(asked, form, batch, past)
    shapes = [(intermediate, *heads)] * layers
    assert found.decode_ms == pytest.approx(by_law(asked, form, batch, 1, past, shapes), rel=1e-3)
    assert found.prefill_ms == pytest.approx(by_law(asked, form, batch, past, 0, shapes), rel=1e-3)


def test_layers_that_differ_are_told_apart():
    layers = [(100, 4, 2), (20, 2, 1)]
    keys = ("intermediate_size", "num_attention_heads", "num_key_value_heads")
    asked = config(layers=2, fedglm_layers=[dict(zip(keys, layer, strict=True)) for layer in layers])
    assert TABLE.predict(asked, "int8", 2, 50).decode_ms == pytest.approx(
        by_law(asked, "int8", 2, 1, 50, layers), rel=1e-3
    )


def test_linears_may_have_formats_of_their_own():
    """Those of one layer in another format change what those linears take, and where the weights lie, and no more."""
    asked = config(layers=2, hidden=64, intermediate=64, vocab=64)  # all lies near
    shape = read_architecture(asked)
    every = dict.fromkeys((*shape.linear_shapes(), EMBEDDING), "int8")
    assert TABLE.predict(asked, every, 2, 20) == TABLE.predict(asked, "int8", 2, 20)
    name = "model.layers.1.mlp.down_proj.weight"
    found = TABLE.predict(asked, every | {name: "fp32"}, 2, 20)
    outputs, inputs = shape.linear_shapes()[name]
    for tokens, one, other in zip((1, 20), found, TABLE.predict(asked, every, 2, 20), strict=True):
        more = law("linear", (inputs, outputs), 2, tokens, 0, "fp32")
        less = law("linear", (filled_up(inputs, "int8"), outputs), 2, tokens, 0, "int8")
        assert one - other == pytest.approx((more - less) / 1e3, rel=1e-3)


def test_queries_in_a_format_of_their_own_are_products_apart():
    """As in the graph: queries, keys and values are one product in one format, and three otherwise."""
    asked = config(layers=1, hidden=64, intermediate=64, vocab=64)
    shapes = read_architecture(asked).linear_shapes()
    every = dict.fromkeys((*shapes, EMBEDDING), "int4")
    query, key, value = (f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv")
    found = TABLE.predict(asked, every | {query: "fp32"}).decode_ms - TABLE.predict(asked, "int4").decode_ms
    wide, narrow = shapes[query][0], shapes[key][0]
    apart = law("linear", (64, wide), 1, 1, 0, "fp32") + 2 * law("linear", (64, narrow), 1, 1, 0, "int4")
    assert shapes[value] == shapes[key]
    assert found == pytest.approx((apart - law("linear", (64, wide + 2 * narrow), 1, 1, 0, "int4")) / 1e3, rel=1e-3)


def test_a_table_comes_back_from_its_json():
    again = LatencyTable.model_validate_json(TABLE.model_dump_json())
    assert again == TABLE
    assert again.predict(config()) == TABLE.predict(config())


def only(keep):
    return LatencyTable(threads=1, reads=READS, entries=tuple(filter(keep, TABLE.entries)))


def test_what_was_not_measured_is_named():
    with pytest.raises(InferenceError, match="no int4, only fp32"):
        only(lambda entry: entry.format == "fp32").predict(config(), "int4")
    with pytest.raises(InferenceError, match="no attention"):
        only(lambda entry: entry.operation != "attention").predict(config())
    with pytest.raises(InferenceError, match="lacks some shapes of fp32 linears"):
        only(lambda entry: entry != TABLE.entries[0]).predict(config())
