"""The light release of a run: made and signed, or refused with the reason; the run goes on either way."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from light_releases import KEY, trust

from fedglm.autoglm.errors import DataError
from fedglm.autoglm.federation import load_federation
from fedglm.autoglm.light.plan.lighten_plan import LightenPlan
from fedglm.autoglm.light.plan.plan_files import read_settings_file, write_settings
from fedglm.autoglm.light.run_release.maker import LightMaker, check_possible
from fedglm.autoglm.light.run_release.outcome import LightOutcome
from fedglm.autoglm.light.search import trials
from fedglm.autoglm.models.build import build_model
from fedglm.autoglm.models.parameters import to_vector
from fedglm.autoglm.settings import DataSettings, LightSettings, ModelSettings
from fedglm.inference.errors import InferenceError
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.privacy.keys.signing import SigningKey

pytestmark = pytest.mark.usefixtures("unsynced")

DATA = DataSettings(source="breast-cancer")
MODEL = ModelSettings(preset="glm-0.1m")
TASK = load_federation(DATA, nodes=1, seed=0, model=MODEL).task
SHA256 = "a" * 64


def make_maker(folder, **settings):
    settings = {"size": "3x", "tolerance": "60%", "steps": 2, "sequences": 64} | settings
    return LightMaker(
        settings=LightSettings(**settings),
        build=lambda: (build_model(MODEL, TASK, seed=0), TASK),
        data=DATA,
        seed=0,
        folder=folder,
        key=KEY,
        describe=lambda: {"scenario": "digits", "epsilon": 2.5, "delta": 1e-5, "privacy_unit": "record"},
        next_version=lambda server_round: 10 + server_round,
    )


@pytest.fixture(scope="module")
def vector():
    return to_vector(build_model(MODEL, TASK, seed=0))


@pytest.fixture(scope="module")
def made(tmp_path_factory, vector):
    folder = tmp_path_factory.mktemp("run")
    maker = make_maker(folder)
    return maker, maker.make(vector, 3, SHA256)


def test_the_release_is_signed_and_says_what_it_is_of(made):
    maker, outcome = made
    release = open_release(maker.release, trust=trust())
    facts = release.manifest.facts
    assert facts.run == {"scenario": "digits", "rounds": 3, "model_sha256": SHA256, "version": 13}
    assert release.manifest.version == outcome.version == 13
    assert (facts.privacy.epsilon, facts.privacy.delta, facts.privacy.unit) == (2.5, 1e-5, "record")
    assert outcome.manifest == hashlib.sha256(release.manifest.to_bytes()).hexdigest()
    with pytest.raises(InferenceError, match="signed by"):
        open_release(maker.release, trust=Trust.in_keys([SigningKey.generate().public]))


def test_the_outcome_has_the_figures_of_all_files_and_is_kept(made):
    maker, outcome = made
    size = sum(path.stat().st_size for path in maker.release.iterdir())
    assert (outcome.bytes, outcome.reason) == (size, None)
    reference = 4 * sum(parameter.numel() for parameter in build_model(MODEL, TASK, seed=0).parameters())
    assert outcome.size_ratio == pytest.approx(reference / size)
    assert outcome.size_ratio >= 3
    assert outcome.loss_rise <= outcome.tolerance == 0.6
    assert LightOutcome.load(maker.folder / "light-release.json") == outcome
    assert "post-processing" in outcome.to_summary()["privacy"]


def test_what_a_killed_process_has_made_is_not_made_again(made, vector):
    maker, outcome = made
    before = (maker.release / "manifest.json").stat().st_ino
    assert maker.make(vector, 3, SHA256) == outcome
    assert (maker.release / "manifest.json").stat().st_ino == before


def test_a_later_release_of_the_run_replaces_it_by_the_same_plan(made, vector):
    maker, outcome = made
    plan = (maker.folder / "light-plan.toml").read_text()
    again = maker.make(vector * np.float32(1.01), 4, "b" * 64)
    assert (again.version, again.recipe, again.reason) == (14, outcome.recipe, None)
    assert again.manifest != outcome.manifest
    assert open_release(maker.release, trust=trust()).manifest.version == 14
    assert (maker.folder / "light-plan.toml").read_text() == plan


@pytest.mark.slow  # it tries the hardest cut of each family
def test_a_size_out_of_reach_is_a_reason_and_no_error(tmp_path, vector):
    outcome = make_maker(tmp_path, size="5000x").make(vector, 1, SHA256)
    assert "nothing here reaches" in outcome.reason
    assert (outcome.version, outcome.manifest) == (None, None)
    assert not (tmp_path / "light").exists()
    assert json.loads((tmp_path / "light-release.json").read_text())["reason"] == outcome.reason


def test_a_release_that_misses_the_tolerance_is_not_released(made, tmp_path, vector, monkeypatch):
    plan = read_settings_file(LightenPlan, made[0].folder / "light-plan.toml")  # the search for one would be the same
    goals = plan.goals.model_copy(update={"tolerance": 0.0})
    write_settings(plan.model_copy(update={"goals": goals}), tmp_path / "light-plan.toml")
    maker = make_maker(tmp_path, tolerance="0%")
    measure = trials.measure_quality

    def worse(model, task, test, **options):
        quality = measure(model, task, test, **options)
        if "vocabulary" not in options:  # the dense model, or its control
            return quality
        return replace(quality, loss=1.5 * quality.loss, metric=quality.metric / 2)

    monkeypatch.setattr(trials, "measure_quality", worse)
    outcome = maker.make(vector, 1, SHA256)
    assert "misses the tolerance" in outcome.reason
    assert outcome.loss_rise > 0.3
    assert outcome.manifest is None
    assert not maker.release.exists()


@pytest.mark.parametrize(
    ("text", "source", "says"),
    [
        ("auto", "digits", "digits has no public records"),
        ("missing.jsonl", "digits", "missing.jsonl"),
        ("own.csv", "own.csv", "the records of the run's own sites"),
    ],
)
def test_a_run_whose_model_cannot_be_made_light_is_refused_before_it_begins(tmp_path, monkeypatch, text, source, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.csv").write_text("text\na\n")
    with pytest.raises(DataError, match=says):
        check_possible(LightSettings(size="3x", text=text), DataSettings(source=source))


@pytest.mark.parametrize(("text", "source"), [("auto", "pydoc"), ("auto", "breast-cancer"), ("model", "digits")])
def test_text_that_is_no_sites_will_do(text, source):
    check_possible(LightSettings(size="3x", text=text), DataSettings(source=source))


def test_a_bug_is_a_reason_too(tmp_path, vector):
    def fail():
        raise ZeroDivisionError("a bug")

    maker = make_maker(tmp_path)
    object.__setattr__(maker, "build", fail)
    assert "unexpected ZeroDivisionError" in maker.make(vector, 1, SHA256).reason
