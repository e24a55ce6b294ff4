"""Light releases of a run of real sites: what the run's file says of them, and how the project counts them."""

import pytest
from light_releases import KEY
from pydantic import ValidationError

from fedglm.scenarios.deployment import build_deployed_model, prepare
from fedglm.scenarios.overrides import load_scenario
from fedglm.server.deployment.run_file import RunFile
from fedglm.server.deployment.run_light import LightRun, count_release
from fedglm.server.errors import ProjectError

pytestmark = pytest.mark.usefixtures("unsynced")


def prepare_run(folder, **settings):
    changes = {f"model.{name.replace('__', '.')}": value for name, value in settings.items()}
    scenario = load_scenario("hospital", settings={"federation.nodes": None, "privacy.units": 40} | changes, rounds=2)
    return prepare(build_deployed_model(scenario), folder, 2)


def test_a_run_without_one_says_nothing_of_light_releases(tmp_path):
    assert prepare_run(tmp_path).light is None
    assert RunFile.load(tmp_path).light is None


def test_the_file_of_a_run_says_what_its_light_releases_are_made_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "public.csv").write_text("text\na\n")
    made = prepare_run(tmp_path / "run", light__size="3x", light__text="public.csv", light_every=1)
    read = RunFile.load(tmp_path / "run")
    assert read == made
    assert read.light.settings.text == str(tmp_path / "public.csv")  # wherever the server's process runs
    assert (read.light.scenario, read.light.epsilon, read.light.unit) == ("hospital", 8.0, "record")
    assert read.light.delta == pytest.approx(1 / 400, rel=0.3)
    assert "public.csv" not in read.spec.recipe
    plan = read.plan(tmp_path / "run", key=KEY, sites={})
    assert plan.light_every == 1
    maker = read.light.make_maker(tmp_path / "run", tmp_path, KEY)
    assert maker.describe() == {"scenario": "hospital", "epsilon": 8.0, "delta": read.light.delta,
                                "privacy_unit": "record"}  # fmt: skip
    assert (maker.next_version(1), maker.next_version(1)) == (1, 2)
    with pytest.raises(ValidationError, match="no light release"):
        LightRun.model_validate(read.light.model_dump() | {"model": {"light": None}})


def test_a_model_built_for_a_release_is_the_run_s(tmp_path):
    made = prepare_run(tmp_path, light="3x")
    module, task = made.light.make_maker(tmp_path, tmp_path, KEY).build()
    from fedglm.protocol.federated_model import make_layout

    assert make_layout(module).sha256 == RunFile.load(tmp_path).plan(tmp_path, key=KEY, sites={}).layout.sha256
    assert task.metric == made.metric


def test_releases_of_a_project_are_counted_and_never_again_from_the_start(tmp_path):
    assert [count_release(tmp_path) for _ in range(3)] == [1, 2, 3]
    (tmp_path / "light.version").write_text("1\n")  # put back from a copy, while release 7 is out
    assert [count_release(tmp_path, above=7) for _ in range(2)] == [8, 9]
    (tmp_path / "light.version").write_text("none")
    with pytest.raises(ProjectError, match=r"light\.version is damaged"):
        count_release(tmp_path)
