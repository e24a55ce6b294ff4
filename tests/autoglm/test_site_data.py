"""One site's records without the others': the same task everywhere, and shares that are the simulation's to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from visit_tables import visits, write

from fedglm.autoglm.data.bundled import BUNDLES
from fedglm.autoglm.data.examples import Examples, concatenate
from fedglm.autoglm.data.row_faults import RowFaults
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.federation import SiteRecords, load_federation
from fedglm.autoglm.settings import DataSettings, ModelSettings
from fedglm.autoglm.site_data import load_site, make_public_task
from fedglm.autoglm.tasks.task import Task
from fedglm.autoglm.tasks.text import TextTask

MODEL = ModelSettings()
CLASSES = {"label_field": "label", "class_names": ("well", "ill"), "length": 32}
TABLE = {
    "label_field": "label",
    "class_names": ("well", "ill"),
    "feature_fields": ("age", "heat"),
    "feature_ranges": {"age": (0.0, 120.0), "heat": (34.0, 42.0)},
    "unit_field": "patient",
}


def same(one: Examples, other: Examples) -> bool:
    columns = ("input_ids", "lengths", "labels", "units")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in columns)


def assert_same_site(one: SiteRecords, other: SiteRecords) -> None:
    assert same(one.train, other.train)
    assert same(one.held_out, other.held_out)


def assert_same_task(one: Task, other: Task) -> None:
    assert one.to_json() == other.to_json()
    assert type(one) is type(other)
    if isinstance(one, TextTask) and isinstance(other, TextTask):
        assert one.tokenizer is not None
        assert other.tokenizer is not None
        assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def read(settings: DataSettings, **options: Any) -> tuple[Task, SiteRecords]:
    return load_site(settings, **{"name": "here", "share": None, "seed": 3, "model": MODEL, **options})


@pytest.mark.parametrize("source", list(BUNDLES))
@pytest.mark.parametrize("split", ["iid", "dirichlet"])
def test_a_share_is_what_a_simulation_deals_to_that_node(source: str, split: str) -> None:
    settings = DataSettings.model_validate({"source": source, "split": split, "length": 64})
    whole = load_federation(settings, nodes=3, seed=3)
    for i in (0, 2):
        task, site = read(settings, share=(i, 3))
        assert site.name == "here"
        assert_same_site(site, whole.sites[i])
        assert_same_task(task, whole.task)
    assert_same_task(make_public_task(settings, MODEL), whole.task)


@pytest.mark.parametrize("kind", [{"length": 32}, CLASSES, TABLE])
def test_a_share_of_a_file_too_whoever_it_is_parted_by(tmp_path: Path, kind: dict[str, Any]) -> None:
    source = write(tmp_path / "visits.jsonl", visits())
    for parted in ({}, {"site_field": "hospital"}, {"split": "dirichlet"}):
        settings = DataSettings.model_validate({"source": source, **kind, **parted})
        whole = load_federation(settings, nodes=3, seed=5)
        task, site = read(settings, share=(1, 3), seed=5)
        assert_same_site(site, whole.sites[1])
        assert_same_task(task, whole.task)


@pytest.mark.parametrize("unit", [{}, {"unit_field": "patient"}])
@pytest.mark.parametrize(
    "kind", [{"length": 32, "label_field": "label", "task": "language-model"}, CLASSES, {**TABLE, "unit_field": None}]
)
def test_a_site_alone_splits_its_rows_as_the_simulation_of_all_sites(
    tmp_path: Path, kind: dict[str, Any], unit: dict[str, Any]
) -> None:
    rows = visits(90)
    source = write(tmp_path / "all.jsonl", rows)
    shared = {**kind, **unit}
    whole = load_federation(DataSettings.model_validate({**shared, "source": source, "site_field": "hospital"}), seed=5)
    for simulated in whole.sites:
        own = write(tmp_path / "own.jsonl", [row for row in rows if row["hospital"] == simulated.name])
        _, alone = read(
            DataSettings.model_validate({**shared, "source": own}), name=simulated.name, seed=5, noised=False
        )
        assert len(alone.train) > len(alone.held_out) > 0
        for one, other in ((alone.train, simulated.train), (alone.held_out, simulated.held_out)):
            for column in ("input_ids", "lengths", *(("labels",) if whole.task.reads_labels else ())):
                assert torch.equal(getattr(one, column), getattr(other, column))
            # Units are numbered where they lie: the same rows belong together.
            assert torch.equal(one.units[:, None] == one.units, other.units[:, None] == other.units)


def test_few_units_fill_both_sides_only_where_nothing_is_noised(tmp_path: Path) -> None:
    emptied = 0
    for seed in range(20):
        rows = [{"text": "one"}, {"text": "another"}]
        settings = DataSettings.model_validate({"source": write(tmp_path / "two.jsonl", rows), "length": 32})
        _, filled = read(settings, seed=seed, noised=False)
        assert (len(filled.train), len(filled.held_out)) == (1, 1)
        _, noised = read(settings, seed=seed)
        emptied += not len(noised.train) or not len(noised.held_out)
        alone = settings.model_copy(update={"source": write(tmp_path / "one.jsonl", rows[:1])})
        held_out = set(noised.held_out.input_ids.sum(1).tolist())
        moved = set(read(alone, seed=seed)[1].held_out.input_ids.sum(1).tolist()) - held_out
        assert not moved, "one record more moved another"
    assert emptied


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (2 * [{"text": "same"}], "'b' has 2 rows that are all the same"),
        ([{"text": "x"}], "'b' has 1 unit; it needs two"),
    ],
)
def test_a_site_that_cannot_be_split_is_named(tmp_path: Path, rows: list[dict[str, str]], said: str) -> None:
    mixed = [{"site": "a", "text": f"text {i}"} for i in range(4)] + [{"site": "b", **row} for row in rows]
    source = write(tmp_path / "few.jsonl", mixed)
    with pytest.raises(DataError, match=said):
        load_federation(DataSettings(source=source, site_field="site", length=32), seed=0)


@pytest.mark.parametrize("kind", [{"length": 32}, CLASSES, TABLE])
def test_without_a_share_all_records_are_the_site_s_own(tmp_path: Path, kind: dict[str, Any]) -> None:
    asked = {"source": write(tmp_path / "visits.jsonl", visits()), "unit_field": "patient", **kind}
    settings = DataSettings.model_validate({**asked, "site_field": "hospital"})
    task, site = read(settings)
    patients = {visit["patient"] for visit in visits()}
    assert set(concatenate([site.train, site.held_out]).units.tolist()) == set(range(len(patients)))
    assert not set(site.train.units.tolist()) & set(site.held_out.units.tolist())
    assert_same_site(site, read(settings)[1])
    assert site.held_out.units.tolist() != read(settings, seed=4)[1].held_out.units.tolist()
    assert_same_task(task, make_public_task(settings, MODEL))


@pytest.mark.parametrize("kind", [{"length": 32}, CLASSES, TABLE])
def test_sites_with_other_rows_and_the_server_with_none_have_one_task(tmp_path: Path, kind: dict[str, Any]) -> None:
    rows = visits()
    halves = [row for row in rows if row["label"] == "ill"], [row | {"age": row["age"] / 9} for row in rows]
    tasks = [make_public_task(DataSettings.model_validate({"source": str(tmp_path / "nowhere.csv"), **kind}), MODEL)]
    for number, half in enumerate(halves):
        source = write(tmp_path / f"{number}.jsonl", half)
        tasks.append(read(DataSettings.model_validate({"source": source, **kind}))[0])
    for task in tasks[1:]:
        assert_same_task(task, tasks[0])


def test_a_public_reference_stands_in_for_ranges(tmp_path: Path) -> None:
    public = write(tmp_path / "public.jsonl", [{"age": a, "heat": 35 + a / 50} for a in range(100)])
    asked = {**TABLE, "feature_ranges": {}, "public_reference": public}
    source = write(tmp_path / "visits.jsonl", visits())
    task, _ = read(DataSettings.model_validate({"source": source, **asked}))
    assert_same_task(task, make_public_task(DataSettings.model_validate({"source": "./elsewhere.csv", **asked}), MODEL))


@pytest.mark.parametrize(
    ("asked", "options", "said"),
    [
        ({"label_field": "label"}, {}, "needs class_names"),
        ({**TABLE, "class_names": ()}, {}, "needs class_names"),
        ({**TABLE, "feature_ranges": {}}, {}, "no range is declared for 'age', 'heat'"),
        ({**CLASSES, "class_names": ("well", "dead")}, {}, "the class 'ill' is not in class_names"),
        ({**CLASSES, "class_names": ("well", "well", "ill")}, {}, "names a class twice"),
        ({**CLASSES, "class_names": ("well",)}, {}, "all rows are of one class"),
        ({"unit_field": "country"}, {"share": (0, 1)}, "there is 1 unit; a node needs two"),
        ({}, {"share": (3, 3)}, "no share 3/3"),
        ({"site_field": "hospital"}, {"share": (0, 2)}, "names 3 sites"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, asked: dict[str, Any], options: dict[str, Any], said: str) -> None:
    source = write(tmp_path / "visits.jsonl", [row | {"country": "x"} for row in visits()])
    with pytest.raises(DataError, match=said) as caught:
        read(DataSettings.model_validate({"source": source, **asked}), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [None, (1, 3)])
def test_rows_that_cannot_be_used_are_left_out_where_they_are_counted(
    tmp_path: Path, share: tuple[int, int] | None
) -> None:
    settings = DataSettings.model_validate({"source": write(tmp_path / "visits.jsonl", visits()), **TABLE})
    _, whole = read(settings, share=share)
    odd = [row | {"label": "dead", "patient": "p0"} for row in visits()[:4]]
    faults = RowFaults()
    settings = settings.model_copy(update={"source": write(tmp_path / "more.jsonl", [*visits(), *odd])})
    assert_same_site(read(settings, share=share, faults=faults)[1], whole)
    assert faults.counts == {"class": 4}
    with pytest.raises(DataError, match="line 61: the class 'dead' is not in class_names"):
        read(settings, share=share)


def test_no_row_at_all_is_a_site_too(tmp_path: Path) -> None:
    for kind in ({"length": 32}, CLASSES, TABLE):
        settings = DataSettings.model_validate({"source": write(tmp_path / "none.jsonl", []), **kind})
        _, site = read(settings, faults=RowFaults())
        assert (len(site.train), len(site.held_out)) == (0, 0)
        with pytest.raises(DataError, match="there is 0 unit"):
            read(settings, share=(0, 1), faults=RowFaults())


def test_a_task_is_never_guessed_from_rows() -> None:
    for asked in ({"label_field": "y"}, {"task": "tabular-classification"}, {"feature_fields": ["x"]}):
        with pytest.raises(DataError, match="needs class_names"):
            make_public_task(DataSettings.model_validate({"source": "./x.csv", **asked}), MODEL)
    with pytest.raises(DataError, match="all rows are of one class"):
        make_public_task(
            DataSettings.model_validate({"source": "./x.csv", "label_field": "y", "class_names": ["a"]}), MODEL
        )
