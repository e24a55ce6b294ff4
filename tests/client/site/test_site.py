"""A site's folder and the node that it is in a run: its own records, and all else from the plan's recipe."""

import logging
from dataclasses import replace

import pytest
from custodies import FREELY, MECHANISM, PRIVATE, SERVER, announced, custody, run_plan
from site_folders import NAME, make_project, make_site, run_of, write_site_file

from fedglm.autoglm.federation import load_federation
from fedglm.autoglm.models.build import build_model
from fedglm.client.gate import OutboundGate
from fedglm.client.node import Node
from fedglm.client.site.folder import open_site
from fedglm.client.site.open_custody import open_custody
from fedglm.client.site.settings import SiteError
from fedglm.client.site.site_node import make_node
from fedglm.compression.codec import make_codec
from fedglm.compression.downlink import ModelVersions
from fedglm.privacy.custody.refusal_log import RefusalLog
from fedglm.privacy.errors import Refusal
from fedglm.protocol.federated_model import FederatedModel
from fedglm.protocol.messages import TrainRequest
from fedglm.protocol.recipe import Recipe

pytestmark = pytest.mark.usefixtures("unsynced")

TRAINING = 'local_steps = 2\nbatch_size = 8\nprecision = "fp32"\ndevice = "cpu"\n'
TRIAL = f'name = "trial"\n[data]\nsource = "breast-cancer"\n[training]\n{TRAINING}'
TABLE = f"""
name = "table"
[data]
source = "./nowhere.csv"
label_field = "anything"
feature_fields = ["x", "y"]
feature_ranges = {{ x = [0, 1], y = [0, 1] }}
class_names = ["low", "high"]
[training]
{TRAINING}"""
TEXT = f'name = "text"\n[data]\nsource = "./nowhere.jsonl"\nlength = 32\n[training]\n{TRAINING}'


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("server"))


def records(home, rows=40):
    """A CSV file with all kinds of fields."""
    path = home / "records.csv"
    lines = [f"{i % 10 / 10},{i % 7 / 7},{'high' if i % 3 else 'low'},p{i // 2},note {i},{i}" for i in range(rows)]
    path.write_text("\n".join(["x,y,class,patient,note,salary", *lines, ""]))
    return path


OWN_CLASSES = {"source": "../records.csv", "label_field": "class", "class_names": ["high", "low"]}
OWN_TABLE = {**OWN_CLASSES, "feature_fields": ["x", "y"], "unit_field": "patient"}
OWN_TEXT = {"source": "../records.csv", "text_field": "note"}


@pytest.fixture
def site_with(tmp_path, project):
    def made(data, **options):
        records(tmp_path)
        return make_site(tmp_path, project, data=data, **options)

    return made


def node_of(site, scenario_toml, **changes):
    _, _, beside = run_of(scenario_toml)
    return make_node(site, run_plan(**(beside | changes)), 0)


def answer(node, beside, scenario, recipe):
    """What a node answers in the first round."""
    model = node_model(scenario, recipe)
    versions = ModelVersions(model.initial, model.layout.sha256, make_codec("dense-fp32"), grid="fp16")
    order = TrainRequest(
        run="run-1",
        round=1,
        nonce="n",
        layout=beside["layout"],
        version=0,
        acknowledged=0,
        learning_rate=recipe.training.learning_rate,
        evaluate=False,
    )
    return node.train(order, versions.message_since(0), FREELY).blob


def node_model(scenario, recipe):
    data = load_federation(scenario.data, nodes=2, seed=recipe.seed)
    return FederatedModel(build_model(recipe.model, data.task, seed=recipe.seed), data.task, recipe.downlink)


# --- what the node is made of


def test_a_trial_s_site_answers_like_the_node_of_a_simulation(site_with, tmp_path):
    site = site_with({"source": "breast-cancer", "share": "1/2"})
    scenario, recipe, beside = run_of(TRIAL)
    here = make_node(site, run_plan(**beside), 0)
    simulated = load_federation(scenario.data, nodes=2, seed=recipe.seed).sites[1]
    there = Node(
        NAME,
        node_model(scenario, recipe),
        train=simulated.train,
        held_out=simulated.held_out,
        training=recipe.training,
        update=recipe.update,
        folder=tmp_path / "simulated",
        seed=recipe.seed,
    )
    assert here.join() == there.join()
    assert answer(here, beside, scenario, recipe) == answer(there, beside, scenario, recipe)
    assert here.folder.parent == site.home


def test_a_site_with_a_file_of_its_own_builds_the_server_s_model_and_trains(site_with):
    site = site_with(OWN_TABLE)
    _, _, beside = run_of(TABLE)
    node = make_node(site, run_plan(**beside), 0)
    words = node.join()
    assert (words.name, words.layout, words.examples) == (NAME, beside["layout"], 0)


def test_a_text_site_too(site_with):
    _, _, beside = run_of(TEXT)
    assert make_node(site_with(OWN_TEXT), run_plan(**beside), 0).join().layout == beside["layout"]


def test_a_declared_weight_is_the_policy_s_number_of_units(site_with):
    site = site_with({"source": "breast-cancer", "share": "0/2"}, policy={"declare_units": 300})
    assert node_of(site, TRIAL).join().examples == 0
    assert node_of(site, TRIAL + '[federation]\nweighting = "declared"\n').join().examples == 300


def test_each_model_has_a_state_of_its_own(site_with):
    site = site_with({"source": "breast-cancer", "share": "0/2"})
    small = node_of(site, TRIAL)
    large = node_of(site, TRIAL + '[model]\npreset = "glm-0.5m"\n')
    assert small.folder != large.folder
    assert node_of(site, TRIAL).folder == small.folder


def test_a_gate_and_a_node_of_the_site_work_together(site_with):
    site = site_with({"source": "breast-cancer", "share": "0/2"}, policy={"servers": (SERVER.public.hex,)})
    _, _, beside = run_of(TRIAL)
    gate = OutboundGate(site.custody(), site.home, site.key())
    gate.admit(announced(run_plan(**beside)))
    assert make_node(site, gate.plan, gate.envelope).join().layout == beside["layout"]


# --- what the site does not let a recipe do


@pytest.mark.parametrize(
    ("own", "scenario", "said"),
    [
        (OWN_TABLE, TRIAL, "the run is for breast-cancer, and the site.toml of berlin names records of its own"),
        ({"source": "digits"}, TRIAL, "names digits"),
        ({"source": "digits"}, TABLE, "the run is for the sites' own records"),
        (
            OWN_TABLE | {"feature_fields": ["x"]},
            TABLE,
            "reads the field 'y', which the site.toml of berlin does not list",
        ),
        (OWN_CLASSES, TABLE, "reads the field 'x'"),
        ({"source": "../records.csv", "feature_fields": ["x", "y"]}, TABLE, "does not name: data.label_field"),
        (OWN_TABLE | {"class_names": []}, TABLE, "does not name: data.class_names"),
        (OWN_TABLE | {"class_names": ["low", "high", "mid"]}, TABLE, "class_names are not those in data.class_names"),
        (OWN_TABLE | {"class_names": ["low"]}, TABLE, "class_names are not those in data.class_names"),
        (OWN_TABLE, TEXT, "does not name: data.text_field"),
    ],
)
def test_a_field_or_source_that_the_site_does_not_name_is_not_read(site_with, own, scenario, said):
    site = site_with(own)
    with pytest.raises(Refusal) as caught:
        node_of(site, scenario)
    assert caught.value.rule == "recipe"
    assert said in str(caught.value)
    (entry,) = RefusalLog(site.custody_folder / "refusals.jsonl").entries()
    assert (entry.rule, entry.run) == ("recipe", "run-1")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"local_steps": 3}, "training.local_steps is 2 by the recipe, and 3 by the plan"),
        ({"codec": "int8"}, "update.codec is topk-sign"),
        ({"density": 0.5}, "update.density"),
        ({"parameters": 5}, "the number of parameters"),
        ({"layout": "0" * 64}, "the layout"),
        ({"recipe": "seed = 1"}, "model is missing"),
        ({"recipe": ""}, "seed is missing"),
    ],
)
def test_a_recipe_that_contradicts_its_plan_is_refused(site_with, changes, said):
    with pytest.raises(Refusal, match="rule recipe") as caught:
        node_of(site_with({"source": "breast-cancer", "share": "0/2"}), TRIAL, **changes)
    assert said in str(caught.value)


def test_a_model_s_folder_and_a_public_file_are_where_the_site_says(tmp_path, site_with):
    public = tmp_path / "public.csv"
    public.write_text("x,y\n" + "".join(f"{i},{i}\n" for i in range(40)))
    scenario = TABLE.replace("feature_ranges = { x = [0, 1], y = [0, 1] }", f'public_reference = "{public}"')
    site = site_with(OWN_TABLE)
    with pytest.raises(Refusal, match=r"berlin must name its copy in data\.public_reference"):
        node_of(site, scenario)
    write_site_file(site.folder, data=OWN_TABLE | {"public_reference": "public.csv"})
    (site.folder / "public.csv").write_text("x,y\n1,1\n")
    with pytest.raises(Refusal, match="the public reference of berlin is not the run's"):
        node_of(open_site(site.folder), scenario)
    (site.folder / "public.csv").write_bytes(public.read_bytes())
    assert node_of(open_site(site.folder), scenario).join().name == NAME
    recipe = Recipe.from_toml(run_of(TABLE)[1].to_toml().replace('preset = "glm-0.1m"', 'path = "site"'))
    with pytest.raises(Refusal, match=r"berlin must name its copy in model\.path"):
        node_of(site, TABLE, recipe=recipe.to_toml())


# --- custody


def test_the_content_is_known_whatever_the_recipe_and_another_record_is_another_content(tmp_path, site_with):
    site = site_with(OWN_TABLE)
    one = open_site(site.folder).custody().commitment
    assert open_custody(site.custody_folder, site.source, unit="patient").commitment == one
    with (tmp_path / "records.csv").open("a") as file:
        file.write("0.1,0.1,low,p9,note,1\n")
    assert open_site(site.folder).custody().commitment != one


def test_custody_says_what_is_protected(site_with):
    assert site_with(OWN_TABLE).custody().unit == "patient"


def test_a_built_in_s_custody(site_with, tmp_path):
    site = site_with({"source": "pydoc"})
    assert site.custody().unit == "record"
    assert len(site.custody().commitment) == 64
    assert custody(tmp_path / "other").commitment != site.custody().commitment


# --- the folder


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"data": {"sourc": "x.csv"}}, "unknown key data.sourc: did you mean source"),
        ({"data": {"source": "digit"}}, "did you mean 'digits'"),
        ({"dat": {}}, "unknown key dat: did you mean data"),
        ({"data": {"source": "digits", "label_field": "y"}}, "digits knows its own fields: leave label_field out"),
        ({"data": {"source": "x.csv", "share": "5/5"}}, "the first of five shares is written 0/5"),
        ({"data": {"source": "x.csv", "class_names": ["a"]}}, "those of the label_field: name that too"),
        ({"data": {"source": "x.csv", "label_field": "y", "class_names": ["a", "a"]}}, "names a class twice"),
        ({"data": {"source": "x.csv", "site_field": "ward"}}, "leave site_field out, or give a share"),
        ({"site": {"name": "paris"}}, "site.toml is of the site paris, kit.toml of berlin"),
        ({"site": {"server": "https://x"}}, "written as HOST:PORT"),
        ({"site": {"server": "x:99999"}}, "written as HOST:PORT"),
        ({"site": {"device": "gpu"}}, "site.device = 'gpu'"),
        ({"site": {"metrics_port": 0}}, "site.metrics_port = 0"),
    ],
)
def test_what_is_wrong_in_site_toml_is_one_line(tmp_path, project, sections, said):
    site = make_site(tmp_path, project, data={"source": "digits"})
    write_site_file(site.folder, **sections)
    with pytest.raises(SiteError) as caught:
        open_site(site.folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_kit_as_it_comes_opens_and_says_what_is_not_filled_in(project):
    site = open_site(project.kits / NAME)
    assert (site.name, site.server, site.kit.federation) == (NAME, "127.0.0.1:8443", "fl")
    with pytest.raises(SiteError, match="does not say yet where the records are"):
        _ = site.source


@pytest.mark.parametrize("name", ["kit.toml", "site.toml"])
def test_a_file_that_is_missing_or_damaged(tmp_path, project, name):
    site = make_site(tmp_path, project)
    path = site.folder / name
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SiteError, match=f"cannot read .*{name}"):
        open_site(site.folder)
    path.write_text("x = [")
    with pytest.raises(SiteError, match=f"{name} is not TOML"):
        open_site(site.folder)
    path.unlink()
    with pytest.raises(SiteError, match=f"{name} is missing"):
        open_site(site.folder)


def test_paths_count_from_the_folder_and_a_server_that_moved_is_named_in_site_toml(tmp_path, project, monkeypatch):
    site = make_site(tmp_path, project, data={"source": "rows.csv"})
    monkeypatch.chdir("/")
    assert site.source == str(tmp_path / NAME / "rows.csv")
    assert site.state == tmp_path / NAME / "state"
    write_site_file(
        site.folder, site={"name": NAME, "server": "[::1]:9", "state": "/var/x"}, data={"source": "~/r.csv"}
    )
    moved = open_site(site.folder)
    monkeypatch.setenv("HOME", "/home/anna")
    assert (moved.server, str(moved.state), moved.source) == ("[::1]:9", "/var/x", "/home/anna/r.csv")


def test_rows_that_a_run_cannot_use_are_left_out_and_counted_in_the_node_s_own_log_alone(site_with, tmp_path, caplog):
    site = site_with(OWN_TABLE)
    with (tmp_path / "records.csv").open("ab") as file:
        file.write(b"0.1,much,low,p99,note,1\n0.1,0.1,mid,p98,note,1\n0.1,0.1,mid,p98,note,1\n\xff,0,low,p97,note,1\n")
    with caplog.at_level(logging.WARNING):
        node = node_of(site, TABLE)
    assert node.join().name == NAME
    (line,) = [record.message for record in caplog.records if "of the records" in record.message]
    assert line.endswith(
        "2 rows of a class that is not named (first in line 43), 1 row not in UTF-8 (first in line 45), 1 row with a "
        "feature that is no number and counts as missing (first in line 42)"
    )
    assert len(node._trainer._train) + len(node._trainer._held_out) == 41


def test_a_site_without_any_row_takes_part(site_with, tmp_path):
    site = site_with(OWN_TABLE)
    (tmp_path / "records.csv").write_text("x,y,class,patient,note,salary\n")
    assert node_of(site, TABLE).join().name == NAME


def test_a_share_of_a_file_is_for_trials_without_noise(site_with):
    site = site_with(OWN_TABLE | {"share": "0/2"}, policy=PRIVATE | {"unit": "patient"})
    assert node_of(site, TABLE).join().name == NAME
    with pytest.raises(Refusal, match="a share of a file, which is for trials without noise"):
        node_of(site, TABLE, mechanism=replace(MECHANISM, steps=2, unit="patient"))
