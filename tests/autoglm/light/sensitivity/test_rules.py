import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_glms import LANGUAGE, random_examples, tiny_glm

from fedglm.autoglm.light.sensitivity.diagnosis import (
    Diagnosis,
    DiagnosisSettings,
    GroupSensitivity,
    RemovalCurve,
    diagnose,
)
from fedglm.autoglm.light.sensitivity.heat_map import draw_heat_map, rank_columns, save_heat_map
from fedglm.autoglm.light.sensitivity.redundancy import Redundancy
from fedglm.autoglm.light.sensitivity.rules import correlate, judge_rules
from fedglm.autoglm.light.sensitivity.table import format_diagnosis
from fedglm.inference.weights.quantized import QuantizedMatrix


def group(number, rise, *, kind="layer", **scores):
    fixed = {"taylor": 1.0, "fisher": 1.0, "activation": 1.0, "trace": 1.0, "l1": 1.0, "svd": 0.3, "error": 1.0}
    values = fixed | {"removal": rise, "quantization": rise / 10} | scores
    return GroupSensitivity(kind=kind, layer=number, name=f"{number} {kind}", parameters=10, **values)


def curves(**rises):
    return tuple(
        RemovalCurve(order=order, share=0.3, rises=rise if isinstance(rise, tuple) else (rise,))
        for order, rise in rises.items()
    )


def diagnosis(rows, chosen=(), redundancy=()):
    return Diagnosis(loss=1.0, sequences=4, rows=tuple(rows), curves=chosen, redundancy=redundancy)


def rho(found, score, change="removal"):
    return next(one.rho for one in found if (one.score, one.change) == (score, change))


@given(st.lists(st.integers(-50, 50), min_size=4, max_size=12, unique=True))
def test_a_score_that_orders_as_the_loss_does_ranks_perfectly(rises):
    rows = [group(i, rise, taylor=np.exp(rise), l1=-rise, trace=i, error=rise) for i, rise in enumerate(rises)]
    found = correlate(diagnosis(rows))
    assert rho(found, "taylor") == pytest.approx(1)
    assert rho(found, "l1") == pytest.approx(-1)
    assert np.isnan(rho(found, "fisher"))  # all alike: no rank
    assert {one.groups for one in found} == {len(rises)}


def test_hawq_is_the_trace_times_the_squared_error():
    rows = [group(i, i * (5 - i), trace=i, error=5.0 - i) for i in range(1, 5)]
    assert rho(correlate(diagnosis(rows)), "hawq", "quantization") == pytest.approx(1)


def test_three_groups_have_no_rank_correlation():
    assert correlate(diagnosis([group(i, i) for i in range(3)])) == []


def verdicts(*arguments):
    return {verdict.rule.split(",")[0]: verdict.holds for verdict in judge_rules(diagnosis(*arguments))}


def test_rules_hold_or_not_by_what_was_measured():
    rows = [group(i, i, svd=0.25, trace=i) for i in range(5)]
    alike = (
        Redundancy(kind="heads", layer=0, units=4, redundant=1, most_similar=0.99, threshold=0.95),
        Redundancy(kind="channels", layer=0, units=8, redundant=0, most_similar=0.7, threshold=0.95),
    )
    found = verdicts(rows, curves(l1=0.4, taylor=0.1, activation=0.2, random=(0.4, 0.5, 0.6)), alike)
    assert found == {
        "channels of least L1 norm can go": False,  # a quarter of what the best order saves
        "channels of least Taylor score can go": True,
        "channels of least activation-weighted norm can go": True,
        "the top 10 % of singular values hold 90 % of the energy": False,
        "the Hessian's trace says what quantization costs": True,
        "there are redundant heads (similarity from 0.95)": True,
        "there are redundant channels (similarity from 0.95)": False,
    }
    rows = [group(i, i, svd=0.95, trace=-i) for i in range(5)]
    found = verdicts(rows, curves(l1=0.4, taylor=0.5, activation=0.6, random=(0.1, 0.2, 0.3)))
    assert not found["channels of least L1 norm can go"]  # random ones are the best there are
    assert found["the top 10 % of singular values hold 90 % of the energy"]
    assert not found["the Hessian's trace says what quantization costs"]


@pytest.fixture(scope="module")
def measured():
    def quantize(weight):
        return QuantizedMatrix(
            codes=np.sign(weight).astype(np.int8),
            scales=np.full((len(weight), 1), 2.0**-5, np.float32),
            block=weight.shape[1],
            low=-1,
            high=1,
        )

    return diagnose(
        tiny_glm(spread=3.0),
        LANGUAGE,
        random_examples(6),
        quantize=quantize,
        settings=DiagnosisSettings(sequences=4, channels=2, probes=1),
    )


def test_a_table_fits_a_terminal_and_names_every_group(measured):
    text = format_diagnosis(measured)
    assert max(map(len, text.splitlines())) <= 80
    for row in measured.rows:
        assert (row.kind == "channel") or row.name in text
    assert "…" not in text
    extreme = dataclasses.replace(measured, rows=tuple(
        dataclasses.replace(row, removal=row.removal and 123456.0, trace=-1e-9) for row in measured.rows))  # fmt: skip
    assert max(map(len, format_diagnosis(extreme).splitlines())) <= 80


def test_a_heat_map_ranks_within_columns_and_kinds(measured, tmp_path):
    values = np.array([[3.0, np.nan], [1.0, 5.0], [2.0, 7.0]])
    assert np.array_equal(rank_columns(values), [[1, np.nan], [0, 0], [0.5, 1]], equal_nan=True)
    figure = draw_heat_map(measured)
    panels = [axes for axes in figure.axes if axes.images]
    assert [len(axes.images[0].get_array()) for axes in panels] == [3, 3, 6]  # layers, feed-forward parts, KV groups
    for name in ("a.png", "a.svg"):
        save_heat_map(measured, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    first = (tmp_path / "a.svg").read_bytes()
    save_heat_map(measured, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_bytes() == first


def test_a_model_of_one_layer_has_a_picture_too(measured):
    alone = dataclasses.replace(measured, rows=tuple(row for row in measured.rows if row.layer in (None, 0)))
    assert [len(axes.images[0].get_array()) for axes in draw_heat_map(alone).axes] == [2]
