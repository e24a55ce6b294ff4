"""A server whose recipe asks for more than a node has: it is refused, before memory is taken and records are read."""

from dataclasses import replace

import pytest
from custodies import MECHANISM, PRIVATE, run_plan
from site_folders import make_project, make_site, run_of, write_site_file

from fedglm.autoglm.tasks.task import Task
from fedglm.client.exchange import Authorization
from fedglm.client.site import site_node
from fedglm.client.site.folder import open_site
from fedglm.client.site.site_node import make_node
from fedglm.compression.codec import make_codec
from fedglm.compression.downlink import ModelVersions
from fedglm.privacy.errors import Refusal
from fedglm.protocol.messages import TrainRequest
from fedglm.protocol.recipe import Recipe, RecipeError

pytestmark = pytest.mark.usefixtures("unsynced")

TRAINING = 'local_steps = 2\nbatch_size = %d\nprecision = "fp32"\ndevice = "cpu"\n'
TEXT = """
name = "text"
[model]
max_length = 65536
[data]
source = "./nowhere.jsonl"
length = %d
[training]
"""
OWN = {"source": "records.csv", "text_field": "note"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("server"))


@pytest.fixture
def site(tmp_path, project):
    made = make_site(tmp_path, project, data=OWN, policy=PRIVATE | {"without_differential_privacy": True})
    (made.folder / "records.csv").write_text("note\n" + "".join(f"note {number}\n" for number in range(60)))
    return made


def node_of(site, length, batch_size, **changes):
    _, _, beside = run_of(TEXT % length + TRAINING % batch_size)
    return make_node(site, run_plan(**(beside | changes)), 0)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "local_steps", "10_000_000_000"),
        ("training", "batch_size", "1_000_000_000"),
        ("training", "micro_batch_size", "1_000_000_000"),
        ("training", "warmup_steps", "1_000_000_000_000"),
        ("training", "weight_decay", "1e30"),
        ("training", "weight_decay", "inf"),
        ("training", "gradient_clip", "inf"),
        ("model", "lora_alpha", "inf"),
        ("model", "preset", '"' + "x" * 10_000 + '"'),
        ("update", "residual_limit", "1_000_000_000_000"),
    ],
)
def test_no_number_of_a_recipe_is_without_a_bound(section, key, value):
    lines = [line for line in run_of(TEXT % 16 + TRAINING % 4)[1].to_toml().splitlines() if not line.startswith(key)]
    lines.insert(lines.index(f"[{section}]") + 1, f"{key} = {value}")
    with pytest.raises(RecipeError, match=f"{section}.{key}"):
        Recipe.from_toml("\n".join(lines))


@pytest.mark.parametrize(("length", "batch_size"), [(65_536, 65_536), (8, 65_536), (65_536, 64)])
def test_what_numbers_within_their_bounds_amount_to_is_held_to_the_machine(site, monkeypatch, length, batch_size):
    """The weights are those of a small model: it is the activations of a step that take the memory."""
    if length * batch_size < 2**30:
        monkeypatch.setattr("fedglm.client.recipe_size.read_memory_limit", lambda: 512 * 10**6)
    with pytest.raises(Refusal, match="rule recipe: the run takes about") as caught:
        node_of(site, length, batch_size)
    assert f"{batch_size} sequences of {length} tokens" in str(caught.value)
    assert not any(character in str(caught.value) for character in ("512", "GiB")), "no figure of this machine"


def test_parts_of_a_batch_fit_where_the_whole_would_not(site, monkeypatch):
    monkeypatch.setattr("fedglm.client.recipe_size.read_memory_limit", lambda: 512 * 10**6)
    _, _, beside = run_of(TEXT % 64 + TRAINING % 65_536 + "micro_batch_size = 8\n")
    assert make_node(site, run_plan(**beside), 0).join().name == "berlin"


@pytest.mark.parametrize("changes", [{"parameters": 5}, {"layout": "0" * 64}, {"local_steps": 3}])
def test_a_recipe_that_contradicts_its_plan_is_refused_before_weights_and_records(site, monkeypatch, changes):
    def never(*_, **__):
        raise AssertionError("it was built, or read, before it was refused")

    monkeypatch.setattr(site_node, "build_model", never)
    monkeypatch.setattr(site_node, "load_site", never)
    for name in ("_build_federated_model", "_load_records"):
        site_node.__dict__[name].cache_clear()
    with pytest.raises(Refusal, match="rule recipe"):
        node_of(site, 16, 4, **changes)


def test_a_vocabulary_of_millions_is_counted_and_not_built(site, monkeypatch):
    """Features times bins make rows of the embedding, of which a recipe's few letters can ask for many."""
    text = run_of(TEXT % 16 + TRAINING % 4)[1].to_toml()
    names = [f"f{number}" for number in range(900)]
    ranges = ", ".join(f"{name} = [0, 1]" for name in names)
    table = {
        'task = "language-model"': 'task = "tabular-classification"',
        "feature_fields = []": f"feature_fields = {names}".replace("'", '"'),
        "class_names = []": 'class_names = ["a", "b"]\nbins = 256\nfeature_ranges = { ' + ranges + " }",
        'preset = "glm-0.1m"': 'preset = "glm-76m"',
    }
    for old, new in table.items():
        assert old in text
        text = text.replace(old, new)
    text = text.replace("\n[data.feature_ranges]\n", "\n").replace(", ", ",")
    data = {"source": "records.csv", "label_field": "note", "class_names": ["a", "b"], "feature_fields": names}
    write_site_file(site.folder, data=data)
    monkeypatch.setattr(site_node, "build_model", None)
    _, _, beside = run_of(TEXT % 16 + TRAINING % 4)
    with pytest.raises(Refusal, match=r"the number of parameters is 2\d{8} by the recipe"):
        make_node(open_site(site.folder), run_plan(**(beside | {"recipe": text})), 0)


def test_chance_does_not_decide_how_much_memory_a_noised_step_takes(site, monkeypatch):
    """With a sampling rate of 1 a step looks at every unit; how many there are is nobody's business."""
    sizes, losses = [], Task.sequence_losses

    def counted(task, model, batch):
        sizes.append(len(batch["labels"]))
        return losses(task, model, batch)

    monkeypatch.setattr(Task, "sequence_losses", counted)
    noise = replace(MECHANISM, sampling_rate=1.0, steps=2)
    node = node_of(site, 32, 4, mechanism=noise)
    model = node._model
    order = TrainRequest(
        run="run-1",
        round=1,
        nonce="n",
        layout=model.layout.sha256,
        version=0,
        acknowledged=0,
        learning_rate=2e-3,
        evaluate=False,
    )
    downlink = ModelVersions(model.initial, model.layout.sha256, make_codec("topk-sign")).message_since(0)
    node.train(order, downlink, Authorization(noise, None, 20, lambda: None, lambda _: True))
    assert sum(sizes) > 60
    assert max(sizes) <= 8
