"""Plans in files: what is written is what is read, in every format."""

import pytest

from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.autoglm.light.plan.goals import Goals
from fedglm.autoglm.light.plan.lighten_plan import LightenPlan, train_for
from fedglm.autoglm.light.plan.plan_files import read_settings_file, to_text, write_settings
from fedglm.autoglm.light.plan.recipe import Recipe
from fedglm.autoglm.light.pruning.settings import Budget, PruningSettings
from fedglm.autoglm.light.pruning.vocabulary import VocabularySettings
from fedglm.autoglm.light.quantization.settings import QatSettings, QuantizationSettings

PLAN = LightenPlan(
    model_sha256="ab" * 32,
    goals=Goals(size_ratio=20),
    training=train_for(40),
    candidates=(
        Recipe(name="plain"),
        Recipe(
            name="all",
            vocabulary=VocabularySettings(min_count=2),
            pruning=PruningSettings(budget=Budget(parameters=1000)),
            recovery=train_for(10),
            fold_norms=True,
            quantization=QuantizationSettings(qat=QatSettings(training=train_for(20), rate=0.1)),
        ),
    ),
)


@pytest.mark.parametrize("suffix", [".toml", ".json", ".yaml", ".yml"])
def test_a_plan_is_read_as_it_was_written(tmp_path, suffix):
    path = tmp_path / f"plan{suffix}"
    write_settings(PLAN, path)
    assert read_settings_file(LightenPlan, path) == PLAN


def test_every_default_is_written():
    assert "trial_share = 0.25" in to_text(PLAN)
    assert "learning_rate = 0.002" in to_text(PLAN)


def test_an_override_by_nothing_is_json_and_no_toml(tmp_path):
    none = Recipe(name="x", quantization=QuantizationSettings(overrides={"*.0.*": None}))
    with pytest.raises(LightenError, match=r"write it as \.json"):
        to_text(none)
    write_settings(none, tmp_path / "x.json")
    assert read_settings_file(Recipe, tmp_path / "x.json") == none


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.toml", 'goals = {size_ratio = 20}\nsead = 1\nmodel_sha256 = "%s"' % ("0" * 64), "sead.*did you mean seed"),
        ("a.toml", "= 1", "is no TOML"),
        ("a.json", "{", "is no JSON"),
        ("a.yaml", "a: [", "is no YAML"),
        ("a.yaml", "!!python/object/apply:os.system ['true']", "is no YAML"),
        ("a.txt", "", "by the file's name"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(LightenError, match=says):
        read_settings_file(LightenPlan, tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LightenError, match=r"gone\.toml"):
        read_settings_file(LightenPlan, tmp_path / "gone.toml")
