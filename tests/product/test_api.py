"""The public API: `fedglm.__all__`, its page, its result; and that importing it costs nothing."""

import ast
import inspect
import json
import re
import subprocess
import sys
import types

import pytest
from command_line import rows_of
from source_tree import API, ROOT

import fedglm as api
from fedglm.autoglm.light.job import SearchOptions, TextOptions
from fedglm.autoglm.models.parameters import to_vector
from fedglm.cli import options
from fedglm.cli.lighten import lighten as lighten_command
from fedglm.cli.simulate import simulate as command
from fedglm.core.code_identity import code_sha256
from fedglm.run_folder.folder import RunFolderError, default_folder
from fedglm.run_folder.record import ReportError
from fedglm.scenarios.overrides import ScenarioOptions
from fedglm.scenarios.scenario import ScenarioError

PAGE = (ROOT / "docs" / "api.md").read_text()
BASE = (
    *("BatchingSettings", "CascadeModel", "FedglmError", "Ledger", "LightenResult", "LiteModel", "Mechanism"),
    *("RunResult", "SimulationCallbacks", "TieredModel", "open_model", "verify", "__version__"),
)
"""What works where nothing but the base install is there."""
EXTRAS = {"simulate": "simulation", "load_scenario": "simulation", "lighten": "light", "diagnose": "light"}
"""What the others need, where that is not what a node has."""


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_it_imports_nothing_else():
    loaded = python("import json, sys; before = {*sys.modules}; import fedglm; print(json.dumps([*sys.modules]))")
    assert [name for name in loaded if name.startswith("fedglm.")] == []
    assert {"torch", "numpy", "flwr", "pydantic", "rich", "importlib.metadata"} & {*loaded} == set()


def test_the_page_lists_each_name_once():
    assert sorted(re.findall(r"^### `fedglm\.(\w+)", PAGE, re.MULTILINE)) == sorted(api.__all__)


@pytest.mark.parametrize("name", [name for name in api.__all__ if name != "__version__"])
def test_each_name_is_there_and_documented(name):
    found = getattr(api, name)
    assert found.__name__ == name
    assert len(inspect.getdoc(found)) > 40
    assert name in dir(api)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(API.read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {*seen, "__version__"} == {*api.__all__}
    assert {name: module for name, (module, _) in api._PLACES.items()} == seen


def test_signatures_on_the_page_are_those_of_the_code():
    for name, written in re.findall(r"^### `fedglm\.(\w+)\((.*)\)`$", PAGE, re.MULTILINE):
        known = inspect.signature(getattr(api, name)).parameters
        for argument in re.split(r", (?=[\w*.])", written):
            parameter, equals, default = argument.lstrip("*").partition("=")
            if parameter in ("", "..."):
                continue
            assert parameter in known, (name, parameter)
            if equals:
                assert ast.literal_eval(default) == known[parameter].default, (name, parameter)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'simulat'"):
        _ = api.simulat
    assert not hasattr(api, "os_path")


def test_the_base_install_has_what_audits_and_says_what_the_rest_needs():
    absent = ("flwr", "numba", "opacus", "peft", "safetensors", "torch", "transformers", "matplotlib", "sklearn", "ray")
    code = f"""
import json, sys
for name in {absent!r}:
    sys.modules[name] = None
import fedglm
said = {{}}
for name in fedglm.__all__:
    try:
        getattr(fedglm, name)
    except ImportError as exc:
        said[name] = str(exc)
print(json.dumps(said))
"""
    said = python(code)
    assert said.keys() == {*api.__all__} - {*BASE}
    for name, line in said.items():
        extra = EXTRAS.get(name, "node")
        assert re.fullmatch(
            rf"fedglm\.{name} needs [a-z]+, which is not installed: pip install 'fedglm\[{extra}\]'", line
        )


def test_flower_is_told_not_to_report_usage():
    shown = "print(json.dumps([os.environ['FLWR_TELEMETRY_ENABLED'], telemetry.FLWR_TELEMETRY_ENABLED]))"
    first = "import json, os; os.environ.pop('FLWR_TELEMETRY_ENABLED', None); import fedglm"
    assert python(f"{first}; from flwr.supercore import telemetry; {shown}") == ["0", "0"]


def test_the_api_is_in_the_hash_that_nodes_compare(tmp_path, monkeypatch):
    before = code_sha256.__wrapped__()
    changed = tmp_path / "__init__.py"
    changed.write_bytes(API.read_bytes())
    monkeypatch.setattr(api, "__file__", str(changed))
    assert code_sha256.__wrapped__() == before
    changed.write_text("# another\n")
    assert code_sha256.__wrapped__() != before


# Simulations.


def test_the_command_and_the_function_take_the_same_options():
    ours = {*inspect.signature(api.simulate).parameters} - {"callbacks", "options"} | {*ScenarioOptions.__annotations__}
    theirs = {*inspect.signature(command).parameters} - {"show_list", "show", "as_json"}
    assert ours == theirs
    read = {*inspect.signature(api.load_scenario).parameters} - {"options"}
    assert read <= {*inspect.signature(api.simulate).parameters}


def test_lighten_takes_the_options_of_its_command():
    ours = {*inspect.signature(api.lighten).parameters} - {"progress", "stopped", "warn", "options"}
    theirs = {*inspect.signature(lighten_command).parameters} - {"plan", "diagnose", "as_json"}
    assert ours | {*SearchOptions.__annotations__} == theirs
    assert {*TextOptions.__annotations__} < theirs


def test_options_of_zero_are_given_and_those_of_none_are_not():
    given = {"seed": 0, "rounds": 0, "epsilon": None, "no_dp": False, "density": 0.0, "workers": 2}
    assert options.collect_options(given) == {"seed": 0, "rounds": 0, "density": 0.0}


class Heard(api.SimulationCallbacks):
    def __init__(self):
        self.steps = []

    def prepared(self, about):
        self.steps.append(about["scenario"])

    def round_done(self, rows):
        self.steps.append(len(rows))


@pytest.fixture(scope="module")
def heard():
    return Heard()


@pytest.fixture(scope="module")
def result(finished, heard, tmp_path_factory):
    """The finished run's twin, in Python."""
    return api.simulate(finished.toml, out=tmp_path_factory.mktemp("api") / "run", callbacks=heard)


def test_a_run_in_python_is_that_of_the_command(finished, result, heard):
    assert result.summary.keys() == finished.summary.keys()
    assert result.summary["model_sha256"] == finished.summary["model_sha256"]
    assert [row["loss"] for row in result.rounds] == [row["loss"] for row in finished.rows]
    assert result.rounds == rows_of(result.paths.folder)
    assert heard.steps == ["tiny", 1, 2, 3]
    assert repr(result) == (
        f"<RunResult tiny, seed 7, 3 rounds, loss {result.summary['loss']}, in {result.paths.folder}>"
    )


def test_a_finished_run_is_opened_and_is_not_run_again(finished, result, heard):
    assert api.RunResult.open(str(result.paths.folder)) == result
    again = api.simulate(finished.toml, out=result.paths.folder, resume=True, callbacks=heard)
    assert again == result
    assert heard.steps == ["tiny", 1, 2, 3]
    assert result.paths.report.read_text().startswith("<!")
    with pytest.raises(ReportError, match=r"holds no summary\.json"):
        api.RunResult.open(result.paths.folder / "nodes")


def test_its_model_is_loaded_and_kept(result):
    assert not result.model.training
    assert to_vector(result.model).size == result.summary["parameters"]
    assert result.model is result.model


def test_rounds_as_a_data_frame(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=lambda rows: ("frame", rows)))
    assert result.to_pandas() == ("frame", result.rounds)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="not installed: pip install pandas"):
        result.to_pandas()


def test_what_is_wrong_is_named_before_anything_runs(tiny, tmp_path):
    out = tmp_path / "run"
    for options_, said in [
        ({"roundz": 3}, "there is no option roundz: did you mean rounds"),
        ({"rounds": 0}, r"federation\.rounds = 0"),
        ({"settings": {"training.local_stebs": 3}}, "did you mean local_steps"),
        ({"epsilon": 3.0, "no_dp": True}, "exclude each other"),
        ({"codec": "int8", "density": 0.1}, "int8 sends every coordinate"),
        ({"engine": "rey"}, "choose inline or ray"),
    ]:
        with pytest.raises(ScenarioError, match=said):
            api.simulate(tiny, out=out, **options_)
    with pytest.raises(RunFolderError, match="--resume needs --out"):
        api.simulate(tiny, resume=True)
    with pytest.raises(api.FedglmError, match="did you mean hospital"):
        api.load_scenario("hopsital")
    assert not out.exists()


def test_a_scenario_is_changed_by_options_and_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = api.load_scenario(
        "hospital", no_dp=True, rounds=2, settings={"training.local_steps": 5, "federation.rounds": 3}
    )
    assert (chosen.privacy.epsilon, chosen.federation.rounds, chosen.training.local_steps) == (None, 3, 5)
    again = api.load_scenario(chosen, seed=9, settings={"model.path": tmp_path / "m"})
    assert (again.federation.seed, again.training.local_steps) == (9, 5)
    assert again.model.path == str(tmp_path / "m")
    sites = api.load_scenario(chosen, data="rows.csv", site_field="ward")
    assert (sites.data.source, sites.data.split, sites.federation.nodes) == (str(tmp_path / "rows.csv"), "site", None)


def test_runs_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "20270101-120000")
    first = default_folder("own/tiny.toml")
    assert str(first) == "runs/tiny-20270101-120000"
    first.mkdir(parents=True)
    assert str(default_folder("tiny")) == "runs/tiny-20270101-120000-2"
