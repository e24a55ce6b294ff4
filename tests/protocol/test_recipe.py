"""The recipe that a server tells: all that sites must share, and nothing that names a file or a field of one."""

from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from fedglm.autoglm.errors import DataError
from fedglm.autoglm.settings import DataSettings, LocalTrainingSettings, ModelSettings
from fedglm.compression.settings import DownlinkSettings, UpdateSettings
from fedglm.protocol.recipe import MAX_CHARACTERS, OWN, Recipe, RecipeError
from fedglm.scenarios.scenario import Scenario, builtin_names, scenario_text

FEATURES = {"feature_fields": ["age"], "feature_ranges": {"age": [0, 120]}, "class_names": ["well", "ill"]}


def recipe_of(**changes: Any) -> Recipe:
    parts = {
        "seed": 7,
        "weighting": "uniform",
        "model": ModelSettings(),
        "data": DataSettings(source="digits"),
        "training": LocalTrainingSettings(),
        "update": UpdateSettings(),
        "downlink": DownlinkSettings(),
    }
    return Recipe.of(**(parts | changes))


def data(**changes: Any) -> DataSettings:
    return DataSettings.model_validate({"source": "/srv/records.csv", **changes})


TREE = recipe_of(data=data(label_field="y", **FEATURES)).model_dump(mode="json", exclude_none=True)


def text_with(**changes: Any) -> str:
    """A recipe with other values, by dotted key."""
    tree = {name: dict(part) if isinstance(part, dict) else part for name, part in TREE.items()}
    for key, value in changes.items():
        *section, name = key.split("__")
        (tree[section[0]] if section else tree)[name] = value
    return tomli_w.dumps(tree)


@pytest.mark.parametrize("name", builtin_names())
def test_a_built_in_scenario_s_recipe_reads_back_and_says_no_more_than_the_scenario(name: str) -> None:
    scenario = Scenario.from_toml(scenario_text(name))
    recipe = recipe_of(
        seed=scenario.federation.seed,
        weighting=scenario.federation.weighting,
        **{part: getattr(scenario, part) for part in ("model", "data", "training", "update", "downlink")},
    )
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert len(recipe.to_toml()) < MAX_CHARACTERS / 5
    assert (recipe.data, recipe.model, recipe.update) == (scenario.data, scenario.model, scenario.update)
    assert type(recipe.training) is LocalTrainingSettings
    assert recipe.training.local_steps == scenario.training.local_steps


def test_paths_fields_and_the_device_of_the_server_are_not_told() -> None:
    recipe = recipe_of(
        model=ModelSettings(preset=None, path="/srv/models/secret-glm"),
        data=data(text_field="note", label_field="icd", unit_field="ssn", site_field="ward", class_names=["a", "b"]),
        training=LocalTrainingSettings(device="cuda"),
    )
    assert (recipe.data.source, recipe.model.path, recipe.training.device) == (OWN, OWN, "auto")
    assert recipe.data.task == "text-classification"  # it can no longer be seen from the fields
    text = recipe.to_toml()
    assert not [word for word in ("srv", "secret", "note", "icd", "ssn", "ward", "cuda") if word in text]
    assert Recipe.from_toml(text) == recipe


def test_a_public_reference_is_told_by_its_content(tmp_path: Any) -> None:
    public = tmp_path / "public.csv"
    public.write_text("age\n1\n2\n")
    asked = {"label_field": "y", "feature_fields": ["age"], "class_names": ["a", "b"]}
    recipe = recipe_of(data=data(public_reference=str(public), **asked))
    assert (recipe.data.public_reference, len(recipe.reference_sha256 or "")) == (OWN, 64)
    assert str(tmp_path) not in recipe.to_toml()
    public.write_text("age\n1\n3\n")
    assert recipe_of(data=data(public_reference=str(public), **asked)).reference_sha256 != recipe.reference_sha256
    with pytest.raises(DataError, match="cannot be read"):
        recipe_of(data=data(public_reference=str(tmp_path / "gone.csv"), **asked))


def test_a_typing_error_in_the_source_is_no_file() -> None:
    with pytest.raises(DataError, match="did you mean 'digits'"):
        recipe_of(data=DataSettings(source="digit"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__source": "/etc/passwd"}, "data.source is 'site' or built-in data"),
        ({"data__source": "../x.csv"}, "data.source is 'site' or built-in data"),
        ({"model__path": "/home/x/model"}, "model.path is 'site'"),
        ({"model__path": ""}, "model.path is 'site'"),
        ({"data__public_reference": "/etc/hosts"}, "data.public_reference is 'site'"),
        ({"data__public_reference": "site"}, "together with reference_sha256"),
        ({"reference_sha256": "0" * 64}, "together with reference_sha256"),
        ({"reference_sha256": "../x"}, "reference_sha256 = '../x'"),
        ({"data__text_field": "ssn"}, "data.text_field is for each site to say"),
        ({"data__unit_field": "row"}, "data.unit_field is for each site to say"),
        ({"data__task": "auto"}, "data.task must be given"),
        ({"training__device": "cuda"}, "training.device is for each site to say"),
        ({"training__local_stepz": 3}, "unknown key training.local_stepz: did you mean local_steps"),
        ({"modell": {}}, "unknown key modell: did you mean model"),
        ({"training__local_steps": 0}, "training.local_steps = 0"),
        ({"training__learning_rate": "fast"}, "training.learning_rate = 'fast'"),
        ({"update__codec": "zip"}, "update: "),
        ({"seed": -1}, "seed = "),
        ({"data__feature_ranges": {"age": [1]}}, "data.feature_ranges.age"),
    ],
)
def test_what_a_server_may_not_say(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_toml(text_with(**changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "text",
    [
        "",
        "seed = 7",
        "\0",
        "[" * 10_000,
        "a." * 5000 + "a = 1",
        "data.feature_ranges." + "a." * 3000 + "a = 1",
        "seed = [{" + "a." * 3000 + "a = 1}]",
        "seed = 0x" + "f" * 19_000,
        "seed = " + "9" * 19_000,
        "seed = [" + "[" * 200 + "]" * 200 + "]",
        "x = 1\n" * 3,
        f"name = '{'x' * 30_000}'",
    ],
)
def test_a_hostile_text_is_one_short_line(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_toml(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900


@given(st.data())
def test_no_change_of_a_recipe_s_text_gives_anything_but_a_recipe_or_a_line(draw: st.DataObject) -> None:
    text = text_with()
    at = draw.draw(st.integers(0, len(text)))
    gone = draw.draw(st.integers(0, 12))
    new = draw.draw(st.text(alphabet="".join(sorted(set(text))) + "/\\'\0é", max_size=12))
    try:
        parsed = Recipe.from_toml(text[:at] + new + text[at + gone :])
    except RecipeError:
        return
    assert parsed.data.source in (OWN, "digits", "pydoc", "breast-cancer")
    assert (parsed.model.path, parsed.data.public_reference) in ((None, None), (OWN, None))
    assert Recipe.from_toml(parsed.to_toml()) == parsed


def test_a_light_release_is_told_and_the_servers_file_is_not() -> None:
    light = {"size": "20x", "text": "/srv/public.jsonl"}
    recipe = recipe_of(model=ModelSettings.model_validate({"light": light, "light_every": 3}))
    assert recipe.model.light is not None
    assert (recipe.model.light.size, recipe.model.light.text, recipe.model.light_every) == ("20x", "server", 3)
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    made = recipe_of(model=ModelSettings.model_validate({"light": {"size": "20x", "text": "model"}}))
    assert made.model.light is not None
    assert made.model.light.text == "model"
    with pytest.raises(RecipeError, match=r"model\.light\.text is auto, model"):
        Recipe.from_toml(recipe.to_toml().replace('text = "server"', 'text = "/etc/passwd"'))
