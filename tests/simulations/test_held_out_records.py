"""The held-out records of a simulation: those that it evaluated on, of no deployed run, and only where public."""

import json
import shutil

import pytest

from fedglm.autoglm.data.examples import concatenate
from fedglm.autoglm.federation import load_federation
from fedglm.autoglm.light.search.record import OwnText
from fedglm.autoglm.models.release import load_release
from fedglm.run_folder.names import NODES, RUN, SCENARIO, SUMMARY
from fedglm.scenarios.scenario import Scenario
from fedglm.simulations.held_out_records import NotPublic, load_held_out

BUILT_IN = """
name = "built-in"
[federation]
nodes = 3
[data]
source = "breast-cancer"
[evaluation]
sequences = 60
"""


def load_data(text):
    scenario = Scenario.from_toml(text)
    return load_federation(scenario.data, nodes=scenario.federation.nodes, seed=scenario.federation.seed)


@pytest.fixture
def built_in(tmp_path):
    """A folder like that of a finished simulation of a built-in's records."""
    folder = tmp_path / "run"
    (folder / NODES).mkdir(parents=True)
    (folder / SCENARIO).write_text(BUILT_IN)
    (folder / SUMMARY).write_text(json.dumps({"sites": load_data(BUILT_IN).describe()["sites"]}))
    return folder


def test_the_model_has_the_loss_there_that_its_run_says(finished):
    held_out = load_held_out(finished.folder, declared_public=True)
    model, task = load_release(finished.folder / "model")
    summary = json.loads((finished.folder / SUMMARY).read_text())
    assert task.evaluate(model, held_out).loss == pytest.approx(summary["loss"], rel=1e-6)


def test_they_are_held_out_records_and_as_many_as_the_scenario_evaluates_on(built_in):
    held_out = load_held_out(built_in, declared_public=False)
    data = load_data(BUILT_IN)
    units = concatenate([site.held_out for site in data.sites]).units
    assert len(held_out) == pytest.approx(60, abs=len(data.sites))
    assert set(held_out.units.tolist()) <= set(units.tolist())
    assert not set(held_out.units.tolist()) & set(concatenate([site.train for site in data.sites]).units.tolist())


def test_a_file_s_records_must_be_declared_public(finished):
    with pytest.raises(NotPublic, match="--sites-data-are-public"):
        load_held_out(finished.folder, declared_public=False)


def test_a_deployed_run_s_are_never_looked_for(built_in):
    (built_in / RUN).write_text("{}")
    with pytest.raises(NotPublic, match="its sites' own"):
        load_held_out(built_in, declared_public=True)


@pytest.mark.parametrize("gone", [SUMMARY, SCENARIO])
def test_an_unfinished_run_has_none(built_in, gone):
    (built_in / gone).unlink()
    with pytest.raises(NotPublic, match="not finished, or cannot be read"):
        load_held_out(built_in, declared_public=False)


@pytest.mark.parametrize("sites", [None, {}, [], [1, 2, 3], "x"])
def test_a_summary_of_other_sites_is_refused(built_in, sites):
    (built_in / SUMMARY).write_text(json.dumps({"sites": sites}))
    with pytest.raises(NotPublic, match="others by now"):
        load_held_out(built_in, declared_public=False)


def test_records_that_changed_or_are_gone_are_refused(finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    table = tmp_path / "table.csv"
    old = Scenario.from_toml((folder / SCENARIO).read_text()).data.source
    (folder / SCENARIO).write_text((folder / SCENARIO).read_text().replace(old, str(table)))
    with pytest.raises(NotPublic, match="cannot be read here"):
        load_held_out(folder, declared_public=True)
    with open(old, encoding="utf-8") as source:
        table.write_text("".join(source.readlines()[:-5]))
    with pytest.raises(NotPublic, match="others by now"):
        load_held_out(folder, declared_public=True)


def test_what_is_in_the_public_text_too_is_left_out():
    site = load_data(BUILT_IN).sites[0]
    train, held_out = site.train, site.held_out
    assert OwnText.without(held_out, train).reason == ""
    some = OwnText.without(held_out, concatenate([train, held_out.select([0, 2])]))
    assert some.reason.startswith("2 that are in the public text")
    assert len(some.examples) == len(held_out) - 2
    assert OwnText.without(held_out, held_out).examples is None
