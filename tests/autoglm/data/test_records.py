"""Data: built-ins, files, splits, and every error a user can meet."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from visit_tables import visits, write

from fedglm.autoglm.data.bundled import BUNDLES
from fedglm.autoglm.data.examples import concatenate
from fedglm.autoglm.data.splits import choose_held_out, split_dirichlet, split_iid
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.federation import FederatedData, load_federation
from fedglm.autoglm.settings import DataSettings

BYTES_OF_TEXT = "site,unit,text\na,1,one text\na,2,two texts\n"


def rows_of(data: FederatedData) -> list[tuple[int, ...]]:
    everything = concatenate([part for site in data.sites for part in (site.train, site.held_out)])
    columns = (everything.units[:, None], everything.labels[:, None], everything.input_ids.long())
    return sorted(map(tuple, torch.cat(columns, 1).tolist()))


def assert_units_stand_on_one_side(data: FederatedData) -> None:
    train = {u for site in data.sites for u in site.train.units.tolist()}
    held_out = {u for site in data.sites for u in site.held_out.units.tolist()}
    assert not train & held_out
    assert all(len(site.train) and len(site.held_out) for site in data.sites)


@pytest.mark.parametrize("source", list(BUNDLES))
@pytest.mark.parametrize("split", ["iid", "dirichlet"])
def test_built_ins(source: str, split: str) -> None:
    asked = DataSettings.model_validate({"source": source, "split": split, "length": 64})
    data = load_federation(asked, nodes=5, seed=3)
    assert [site.name for site in data.sites] == [f"site-{i}" for i in range(5)]
    assert_units_stand_on_one_side(data)
    again, other = load_federation(asked, nodes=5, seed=3), load_federation(asked, nodes=5, seed=4)
    for a, b in zip(data.sites, again.sites, strict=True):
        assert torch.equal(a.train.input_ids, b.train.input_ids)
        assert torch.equal(a.held_out.units, b.held_out.units)
    assert any(a.train.units.tolist() != c.train.units.tolist() for a, c in zip(data.sites, other.sites, strict=True))
    assert rows_of(data) == rows_of(other)
    described = data.describe()
    json.dumps(described)
    assert sum(site["units"] for site in described["sites"]) == len(BUNDLES[source](None).records)
    batch = data.sites[0].train.batch([0, 1])
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert batch["input_ids"].max() < data.task.vocab_size


def test_public_rows_are_at_no_site_and_said_to_be_public() -> None:
    data = load_federation(DataSettings(source="breast-cancer"), seed=0)
    assert sum(len(site.train) + len(site.held_out) for site in data.sites) == 500
    assert "69 of the 569 rows, set aside" in data.describe()["notes"][0]


def test_dirichlet_is_uneven_and_iid_is_not() -> None:
    def spread(alpha: float) -> float:
        asked = DataSettings(source="digits", split="dirichlet", alpha=alpha)
        sites = load_federation(asked, nodes=4, seed=0).sites
        counts = np.array([np.bincount(site.train.labels, minlength=10) for site in sites])
        return float((counts / counts.sum(1, keepdims=True)).std(0).mean())

    assert spread(0.1) > 3 * spread(100)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.data(), st.integers(0, 2**32), st.floats(0.01, 100))
def test_units_are_dealt_whole_and_none_is_lost(nodes: int, draw: st.DataObject, seed: int, alpha: float) -> None:
    groups = np.array(draw.draw(st.lists(st.integers(0, 3), min_size=2 * nodes, max_size=60)))
    deals = (
        lambda: split_iid(len(groups), nodes, np.random.default_rng(seed)),
        lambda: split_dirichlet(groups, nodes, alpha, np.random.default_rng(seed)),
    )
    for deal in deals:
        parts = deal()
        assert len(parts) == nodes
        assert min(map(len, parts)) >= 2
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
        assert all(np.array_equal(a, b) for a, b in zip(parts, deal(), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 40), min_size=8), min_size=1, max_size=4), st.floats(0.05, 0.9), st.integers(0, 9)
)
def test_a_unit_is_held_out_everywhere_or_nowhere(sites: list[set[int]], share: float, seed: int) -> None:
    named = {f"s{i}": np.array(sorted(units)) for i, units in enumerate(sites)}
    try:
        held_out = choose_held_out(named, share, np.random.default_rng(seed))
    except DataError as error:
        assert len(sites) > 1
        assert "shares its units" in str(error)  # noqa: PT017 - a rare outcome beside the usual one
        return
    assert held_out <= set().union(*sites)
    for units in sites:
        assert 0 < len(units & held_out) < len(units)
    if len(sites) == 1:
        assert len(held_out) == min(max(round(share * len(sites[0])), 1), len(sites[0]) - 1)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".tsv", ".csv.gz"])
def test_every_kind_of_file_reads_the_same(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"visits{suffix}"
    if "sv" in suffix:
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, list(visits()[0]), delimiter="\t" if suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(visits())
        content = file.getvalue().encode()
        path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    else:
        write(path, visits())
    data = load_federation(DataSettings(source=str(path), site_field="hospital", unit_field="patient"), seed=1)
    same = load_federation(
        DataSettings(source=write(tmp_path / "plain.jsonl", visits()), site_field="hospital", unit_field="patient"),
        seed=1,
    )
    assert [site.name for site in data.sites] == ["h0", "h1", "h2"]
    assert rows_of(data) == rows_of(same)
    assert_units_stand_on_one_side(data)


def test_the_task_follows_from_the_fields(tmp_path: Path) -> None:
    source = write(tmp_path / "visits.jsonl", visits())
    assert load_federation(DataSettings(source=source), seed=0).task.kind == "language-model"
    text = load_federation(DataSettings(source=source, label_field="label", length=16), seed=0)
    assert (text.task.kind, text.task.labels) == ("text-classification", ("ill", "well"))
    assert text.sites[0].train.input_ids.dtype == torch.uint8
    ranges = {"age": (0.0, 120.0), "heat": (34.0, 42.0)}
    table = load_federation(
        DataSettings(
            source=source,
            label_field="label",
            feature_fields=("age", "heat"),
            feature_ranges=ranges,
            unit_field="patient",
        ),
        seed=0,
        nodes=2,
    )
    assert (table.task.kind, table.task.length) == ("tabular-classification", 3)
    assert_units_stand_on_one_side(table)
    grouped = DataSettings(source=source, task="language-model", label_field="label", split="dirichlet")
    assert set(load_federation(grouped, seed=0).sites[0].train.labels.tolist()) <= {0, 1}


def test_bins_never_see_a_site_s_rows(tmp_path: Path) -> None:
    public = write(tmp_path / "public.jsonl", [{"age": a, "heat": 35 + a / 50} for a in range(100)])
    encoders = []
    for factor in (1, 1000):
        rows = [row | {"age": factor * row["age"]} for row in visits()]
        asked = DataSettings(
            source=write(tmp_path / f"{factor}.jsonl", rows),
            label_field="label",
            feature_fields=("age", "heat"),
            public_reference=public,
        )
        data = load_federation(asked, seed=0, nodes=2)
        encoders.append(data.task.table)
        assert "100 public rows" in data.describe()["notes"][0]
    assert encoders[0] == encoders[1]


def test_rows_without_text_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*visits(), {"hospital": "h0", "text": None}, {"hospital": "h1", "text": "  \n"}, {"hospital": "h1"}]
    data = load_federation(DataSettings(source=write(tmp_path / "v.jsonl", rows), site_field="hospital"), seed=0)
    assert data.describe()["notes"] == ["3 rows without text were left out"]
    assert sum(site["units"] for site in data.describe()["sites"]) == 60


def test_declared_classes_may_be_more_than_a_site_has(tmp_path: Path) -> None:
    asked = DataSettings(
        source=write(tmp_path / "v.jsonl", [row | {"label": "ill"} for row in visits()]),
        label_field="label",
        class_names=("well", "ill", "unknown"),
    )
    data = load_federation(asked, seed=0, nodes=1)
    assert set(data.sites[0].train.labels.tolist()) == {1}


def test_a_long_csv_field_and_a_byte_order_mark(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    rows = "".join(f'{i},"{"long, " * 50_000}"\r\n' for i in range(2))
    (tmp_path / "long.csv").write_text("\ufeffunit,text\r\n" + rows, encoding="utf-8")
    data = load_federation(DataSettings(source=str(tmp_path / "long.csv"), unit_field="unit"), seed=0, nodes=1)
    assert data.describe()["sites"][0]["tokens"] > 600_000
    assert csv.field_size_limit() == limit


FILE_ERRORS: dict[str, tuple[str, bytes, dict[str, Any], str]] = {
    "empty": ("x.jsonl", b"", {}, "holds no rows"),
    "blank": ("x.jsonl", b"\n\n", {}, "holds no rows"),
    "header alone": ("x.csv", b"text,site\n", {}, "holds no rows"),
    "not json": ("x.jsonl", b'{"text": "a"}\n{"text": \n', {}, "line 2: not JSON"),
    "not an object": ("x.jsonl", b'{"text": "a"}\n[1]\n', {}, "line 2: each line must be a JSON object"),
    "not utf-8": ("x.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', {}, "line 2: not UTF-8"),
    "utf-8 in csv": ("x.csv", b"text\na\n\xff\n", {}, "line 3: not UTF-8"),
    "ragged": ("x.csv", b"text,site\na,b\na,b,c\n", {}, "line 3: 3 values for 2 fields"),
    "not csv": ("x.csv", b'text,site\n"a"b,c\n', {}, "line 2: not CSV"),
    "two of a name": ("x.csv", b"text,text\na,b\n", {}, "same name"),
    "not gzip": ("x.jsonl.gz", b'{"text": "a"}\n', {}, "gzip file is damaged"),
    "cut gzip": ("x.csv.gz", gzip.compress(BYTES_OF_TEXT.encode())[:-9], {}, "gzip file is damaged"),
    "other kind": ("x.parquet", b"PAR1", {}, "must end in .jsonl"),
    "surrogate": ("x.jsonl", b'{"text": "\\ud83d"}\n', {}, "line 1: the field 'text' holds half a character"),
    "no text at all": ("x.jsonl", b'{"text": ""}\n', {}, "no row holds any text"),
    "text is a number": ("x.jsonl", b'{"text": 3}\n', {}, "must be text, not a int"),
    "near field": ("x.csv", BYTES_OF_TEXT.encode(), {"text_field": "txt"}, "no field 'txt'; did you mean 'text'"),
    "lists fields": ("x.csv", BYTES_OF_TEXT.encode(), {"label_field": "y"}, "there are: site, unit, text"),
    "unit unknown": (
        "x.jsonl",
        b'{"text": "a", "u": 1}\n{"text": "b"}\n',
        {"unit_field": "u"},
        "line 2: the field 'u'",
    ),
    "one unit": ("x.csv", (BYTES_OF_TEXT + "b,3,x\n").encode(), {"site_field": "site"}, "site 'b' has 1 unit"),
    "empty site": (
        "x.csv",
        (BYTES_OF_TEXT + 'c,3,""\nc,4," "\n').encode(),
        {"site_field": "site"},
        "site 'c' is empty: none of its 2 rows",
    ),
    "one class": ("x.csv", b"text,y\na,no\nb,no\n", {"label_field": "y"}, "all rows are of one class .'no'"),
    "class unknown": (
        "x.csv",
        b"text,y\na,no\nb,maybe\n",
        {"label_field": "y", "class_names": ("no", "yes")},
        "the class 'maybe' is not in class_names",
    ),
    "nodes and sites": (
        "x.csv",
        BYTES_OF_TEXT.encode(),
        {"site_field": "site", "nodes": 3},
        "3 nodes .* names 1 sites",
    ),
    "too many nodes": ("x.csv", BYTES_OF_TEXT.encode(), {"nodes": 2}, "2 nodes need two units each .* at most 1"),
    "split by no site": ("x.csv", BYTES_OF_TEXT.encode(), {"split": "site"}, "needs a site_field"),
    "no label": ("x.csv", BYTES_OF_TEXT.encode(), {"task": "text-classification"}, "needs a label_field"),
    "no features": (
        "x.csv",
        BYTES_OF_TEXT.encode(),
        {"task": "tabular-classification", "label_field": "site"},
        "needs feature_fields",
    ),
    "no ranges": (
        "x.csv",
        BYTES_OF_TEXT.encode(),
        {"label_field": "site", "feature_fields": ("unit",)},
        "no range is declared for 'unit': bins must not be placed by private rows",
    ),
    "not a number": (
        "x.csv",
        BYTES_OF_TEXT.encode(),
        {"label_field": "site", "feature_fields": ("text",), "feature_ranges": {"text": (0, 1)}},
        "line 2: the feature 'text' must be a number, not 'one text'",
    ),
}


@pytest.mark.parametrize("case", FILE_ERRORS)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path: Path, case: str) -> None:
    name, content, options, message = FILE_ERRORS[case]
    (tmp_path / name).write_bytes(content)
    nodes = options.get("nodes")
    asked = {key: value for key, value in options.items() if key != "nodes"}
    with pytest.raises(DataError, match=message) as caught:
        load_federation(DataSettings.model_validate({"source": str(tmp_path / name), **asked}), seed=0, nodes=nodes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"source": "/nowhere/rows.jsonl"}, "there is no such file"),
        ({"source": "digit"}, "did you mean 'digits'"),
        ({"source": "digits", "label_field": "y"}, "leave label_field out"),
        ({"source": "pydoc", "task": "text-classification"}, "is for language-model"),
        ({"source": "pydoc", "split": "site"}, "needs a site_field"),
    ],
)
def test_what_is_wrong_with_the_settings(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_federation(DataSettings.model_validate(asked), seed=0)


def test_too_many_nodes_for_a_built_in() -> None:
    with pytest.raises(DataError, match="use at most 39 nodes"):
        load_federation(DataSettings(source="pydoc"), nodes=400, seed=0)
