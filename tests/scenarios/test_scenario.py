"""Scenarios: what may be written in one, what is said when it may not, and that writing one out loses nothing."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fedglm.cli.errors import explain
from fedglm.compression.codec import codec_names
from fedglm.compression.settings import UpdateSettings
from fedglm.scenarios.overrides import load_scenario
from fedglm.scenarios.scenario import Scenario, ScenarioError, builtin_names, parse_setting, scenario_text
from fedglm.server.settings import FederationSettings

LEAST = 'name = "least"\n[data]\nsource = "breast-cancer"\n'


def read(text=LEAST, **overrides):
    return Scenario.from_toml(text, {key.replace("__", "."): value for key, value in overrides.items()})


def mistake(text=LEAST, overrides=None):
    with pytest.raises(ScenarioError) as caught:
        Scenario.from_toml(text, overrides or {})
    line, exit_code = explain(caught.value)
    assert exit_code == 2
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", builtin_names())
def test_built_in_scenarios_are_valid_and_say_what_they_are(name):
    scenario = Scenario.from_toml(scenario_text(name))
    assert scenario.name == name
    assert 20 < len(scenario.description) <= 110
    assert Scenario.from_toml(scenario.to_toml()) == scenario
    assert scenario.privacy.epsilon == (8.0 if name == "hospital" else None)


def test_the_built_ins_of_the_documentation_exist():
    assert set(builtin_names()) >= {"hospital", "iot", "text"}


def test_every_default_is_written_out():
    scenario = read()
    tree = tomllib.loads(scenario.to_toml())
    assert tree["federation"]["seed"] == 7
    assert tree["update"] == {
        "codec": "topk-sign",
        "density": 0.05,
        "rank": 4,
        "overshoot": 2.0,
        "feedback": True,
        "residual_decay": scenario.update.residual_decay,
        "residual_limit": scenario.update.residual_limit,
    }
    unwritten = {
        f"{section}.{key}"
        for section, values in scenario.model_dump().items()
        if isinstance(values, dict)
        for key, value in values.items()
        if value is not None and key not in tree[section]
    }
    assert unwritten == set()


def test_round_trip_of_everything_that_is_not_a_default():
    scenario = read(
        description='quotes " and \\ and\nlines, Ärzte, 😀',
        federation__nodes=3,
        federation__fraction=0.25,
        federation__round_timeout_s=float("inf"),
        model__adapter="lora",
        model__max_length=64,
        data__source="a b/ü.csv",
        data__site_field="the site",
        data__feature_fields=["x", 'y"'],
        data__feature_ranges={"x": [0.0, 1.5], 'y"': [-1e-9, 1e300]},
        training__micro_batch_size=3,
        training__learning_rate=1.2345678901234567e-3,
        update__density=1e-7,
        downlink__grid="fp32",
        evaluation__baselines=["pooled", "alone"],
    )
    assert Scenario.from_toml(scenario.to_toml()) == scenario
    assert Scenario.from_toml(scenario.to_toml()).to_toml() == scenario.to_toml()


def test_an_override_wins_and_none_takes_away():
    text = LEAST + "[federation]\nnodes = 9\nrounds = 5\n"
    scenario = Scenario.from_toml(text, {"federation.nodes": None, "federation.rounds": 2, "update.codec": "int8"})
    assert (scenario.federation.nodes, scenario.federation.rounds, scenario.update.codec) == (None, 2, "int8")


@pytest.mark.parametrize("section", ["federation", "model", "data", "training", "update", "downlink", "evaluation"])
def test_a_misspelt_key_is_answered_with_the_near_ones(section):
    key = next(iter(getattr(read(), section).model_dump()))
    line = mistake(overrides={f"{section}.{key}x": 1})
    assert f"unknown key {section}.{key}x" in line
    assert f"did you mean {key}" in line


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("federatoin.rounds", 3, "did you mean federation?"),
        ("training.learnrate", 3, "learning_rate"),
        ("privacy.epsilonn", 3, "did you mean epsilon?"),
        ("update.codec", "topk-sing", "topk-sign"),
        ("update.codec", "topk-sing", "update: there is no codec"),
        ("update.codec", 3, "update.codec = 3"),
        ("update.density", 0, "update.density = 0: input should be greater than 0"),
        ("update.density", float("nan"), "update.density = nan"),
        ("federation.rounds", 0, "greater than or equal to 1"),
        ("federation.rounds", "many", "federation.rounds = 'many'"),
        ("federation.fraction", 1.5, "less than or equal to 1"),
        ("federation.seed", -1, "federation.seed = -1"),
        ("training.optimizer", "adam", "adamw"),
        ("training.precision", "fp64", "fp32"),
        ("evaluation.baselines", ["pool"], "pooled"),
        ("privacy.epsilon", 0, "greater than or equal to 0.05"),
        ("federation", 3, "federation"),
        ("name.first", "x", "name is a value, not a section"),
        ("name", None, "name is missing"),
        ("data", None, "data is missing"),
        ("data.source", None, "data.source is missing"),
    ],
)
def test_a_wrong_value_is_answered_with_what_is_right(key, value, said):
    assert said in mistake(overrides={key: value})


def test_several_mistakes_are_named_at_once():
    line = mistake(overrides={"federation.rounds": 0, "update.density": 2, "model.nope": 1})
    assert line.count(";") == 2


def test_text_that_is_no_toml_is_told_with_its_line():
    assert "line 2" in mistake("name = 'x'\n[data\n")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("a.b=3", "a.b", 3),
        ("a.b = 3.5 ", "a.b", 3.5),
        ("a.b=true", "a.b", True),
        ("a.b=[1, 2]", "a.b", [1, 2]),
        ('a.b="3"', "a.b", "3"),
        ("a.b=lora", "a.b", "lora"),
        ("a.b=x=y", "a.b", "x=y"),
        ("a.b=", "a.b", ""),
        ("a.b={x = [0, 1]}", "a.b", {"x": [0, 1]}),
    ],
)
def test_a_setting_is_toml_or_else_a_word(text, key, value):
    assert parse_setting(text) == (key, value)


@pytest.mark.parametrize("text", ["", "a.b", "=3", "  =3"])
def test_a_setting_without_key_or_value_is_refused(text):
    with pytest.raises(ScenarioError, match=r"section\.key=value"):
        parse_setting(text)


def test_a_setting_cannot_smuggle_in_another_key():
    # A value that is TOML of several lines is no value.
    assert parse_setting('a.b=1\nother = "x"') == ("a.b", '1\nother = "x"')


def test_an_unknown_scenario_is_answered_with_the_near_ones():
    with pytest.raises(ScenarioError, match="did you mean hospital"):
        scenario_text("hopsital")
    with pytest.raises(ScenarioError, match=r"cannot read the scenario nowhere\.toml"):
        scenario_text("nowhere.toml")


def test_paths_count_from_where_they_are_written(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    text = 'name = "x"\n[data]\nsource = "t.csv"\npublic_reference = "open/p"\n[model]\npath = "m"\n'
    (home / "x.toml").write_text(text)
    monkeypatch.chdir(here)
    scenario = load_scenario("../home/x.toml")
    assert [(here / path).resolve() for path in (scenario.data.source, scenario.data.public_reference)] == [
        home / "t.csv",
        home / "open" / "p",
    ]
    assert Path(scenario.model.path).is_absolute()
    assert Path(scenario.data.source).is_absolute()
    # Options count from the current folder, --data even where a built-in has that name.
    scenario = load_scenario("../home/x.toml", data=Path("digits"), settings={"model.path": "m"})
    assert scenario.data.source == str(here / "digits")
    assert scenario.model.path == str(here / "m")
    # Names of built-in data stay, and what was absolute too.
    assert load_scenario("hospital").data.source == "breast-cancer"
    assert load_scenario("text", settings={"data.source": "digits"}).data.source == "digits"
    (here / "again.toml").write_text(scenario.to_toml())
    monkeypatch.chdir(tmp_path)
    assert load_scenario("here/again.toml") == scenario


def test_a_file_that_is_not_utf_8_is_refused(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes('name = "Ärzte"'.encode("latin-1"))
    with pytest.raises(ScenarioError, match="cannot read"):
        scenario_text(str(path))


@pytest.mark.parametrize("name", codec_names())
def test_every_codec_can_be_asked_for(name):
    scenario = read(update__codec=name, downlink__codec=name)
    assert scenario.update.is_sparse == scenario.downlink.is_sparse == (name == "hybrid" or name.startswith("topk"))
    assert scenario.update.effective_density == (0.05 if scenario.update.is_sparse else 1.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"codec": "int8"}, "int8"),
        ({"codec": "topk-fp16", "density": 0.01}, "topk-fp16 at density 0.01"),
        ({"codec": "hybrid", "rank": 2}, "hybrid at rank 2 and density 0.05"),
        ({"codec": "lowrank", "max_ratio": 0.01}, "lowrank within 0.01 of float32"),
    ],
)
def test_a_codec_in_words(settings, words):
    assert UpdateSettings(**settings).in_words == words


def test_a_budget_leaves_the_density_open():
    scenario = read(update__max_ratio=0.01)
    assert scenario.update.effective_density is None
    with pytest.raises(ScenarioError, match="'int8' has a fixed size"):
        read(update__max_ratio=0.01, update__codec="int8")


def test_a_run_plans_no_more_seals_than_sites_keep(fedglm):
    assert FederationSettings(rounds=1800, seal_every=2).rounds == 1800
    said = fedglm("simulate", "hospital", "--set", "federation.rounds=22501")
    assert "set seal_every to 26 or more" in said.line()


ANSWERED = [
    (["--list"], 0),
    (["--show", "iot"], 0),
    (["--help"], 0),
    (["--set", "training.local_step=3"], 2),
    (["--codec", "int7"], 2),
    (["nowhere"], 2),
]


@pytest.fixture(scope="module")
def lean_answers():
    """What a fresh process has imported of the libraries that take seconds: first after reading, then by command."""
    heavy = {"torch", "transformers", "flwr", "sklearn", "opacus", "peft", "ray"}
    code = f"""
import contextlib, io, json, sys
def loaded():
    return sorted({heavy} & {{name.split(".")[0] for name in sys.modules}})
from fedglm.scenarios.scenario import Scenario
found = [[0, loaded()]]
from fedglm.cli.main import main
for arguments in {[arguments for arguments, _ in ANSWERED]}:
    sys.argv, status = ["fedglm", "simulate", *arguments], 0
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main()
    except SystemExit as exc:
        status = exc.code or 0
    found.append([status, loaded()])
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_scenario_is_read_without_torch(lean_answers):
    assert lean_answers[0] == [0, []]


@pytest.mark.parametrize("at", range(len(ANSWERED)), ids=[" ".join(arguments) for arguments, _ in ANSWERED])
def test_the_command_answers_about_scenarios_without_torch(lean_answers, at):
    assert lean_answers[at + 1] == [ANSWERED[at][1], []]


def test_a_light_release_is_a_size_or_a_table_and_none_by_default():
    assert read().model.light is None
    assert "light" not in read().to_toml()
    short = read(model__light="20x", model__light_every=5)
    assert (short.model.light.size, short.model.light.tolerance, short.model.light_every) == ("20x", "5%", 5)
    table = read(model__light__size="80kB", model__light__steps=50)
    assert (table.model.light.size, table.model.light.steps) == ("80kB", 50)
    for scenario in (short, table):
        assert Scenario.from_toml(scenario.to_toml()) == scenario


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model.light": "20"}, "model.light.size"),
        ({"model.light": "20q"}, "model.light.size"),
        ({"model.light": "0.5x"}, "size is 1x to 10000x"),
        ({"model.light": 20}, "model.light"),
        ({"model.light.tolerance": "5%"}, "model.light.size"),
        ({"model.light": "20x", "model.light_every": 0}, "model.light_every"),
        ({"model.light_every": 2}, "light_every repeats a light release"),
        ({"model.light.size": "20x", "model.light.step": 3}, "steps"),
        ({"model.light.size": "20x", "model.light.tolerance": "5"}, "model.light.tolerance"),
    ],
)
def test_a_light_release_that_cannot_be_made_is_one_line(settings, says):
    assert says in mistake(overrides=settings)
