"""Updates are held to records that the server may see: those that harm the model to come are left out."""

import itertools
import math

import fake_grid
import numpy as np
import pytest
import torch
from honest_updates import CODEC, SIZE, honest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.autoglm.data.bundled import BUNDLES
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.federation import load_federation
from fedglm.autoglm.models.build import build_model
from fedglm.autoglm.models.parameters import load_vector, to_vector
from fedglm.autoglm.settings import DataSettings, ModelSettings
from fedglm.autoglm.site_data import make_public_task
from fedglm.autoglm.training.reference import MAX_SEQUENCES, ReferenceLoss, load_reference_examples
from fedglm.compression.codec import decode, make_codec
from fedglm.compression.downlink import ModelVersions
from fedglm.run_folder.names import REFERENCE
from fedglm.scenarios.deployment import build_deployed_model, prepare
from fedglm.scenarios.references import usable_reference
from fedglm.scenarios.scenario import Scenario
from fedglm.server.aggregation.fixed_point import FixedPointMean
from fedglm.server.aggregation.reference_check import MAX_GROUPS, ReferenceCheck, find_harmful, make_groups
from fedglm.server.aggregation.robust_mean import HarmCheck, RobustAggregator
from fedglm.server.deployment.run_file import RunFile
from fedglm.server.deployment.run_reference import load_reference, save_reference
from fedglm.server.errors import ProjectError
from fedglm.server.rounds.global_model import GlobalModel

TABLE = DataSettings(source="breast-cancer")


@pytest.fixture(scope="module")
def learned():
    """Task and model of breast-cancer."""
    task = make_public_task(TABLE, ModelSettings())
    return task, build_model(ModelSettings(), task, seed=0)


# Who is left out


@given(st.lists(st.integers(-9, 9), min_size=3, max_size=6), st.integers(20, 30))
def test_the_minority_that_harms_is_left_out(effects, base):
    """Where effects add up, the choice is the best of all minorities."""

    def loss_without(numbers):
        return base + sum(effect for number, effect in enumerate(effects) if number not in numbers)

    least = min(
        loss_without(chosen)
        for size in range((len(effects) - 1) // 2 + 1)
        for chosen in itertools.combinations(range(len(effects)), size)
    )
    chosen = find_harmful(len(effects), (len(effects) - 1) // 2, lambda choices: list(map(loss_without, choices)))
    assert loss_without(chosen) == least


def test_where_the_loss_is_least_with_all_nobody_is_left_out():
    assert find_harmful(5, 2, lambda choices: [float(len(numbers)) for numbers in choices]) == []


def test_a_model_that_leaves_the_range_of_weights_is_worse_than_any():
    assert find_harmful(4, 1, lambda choices: [3.0 if 2 in numbers else math.inf for numbers in choices]) == [2]


def test_no_more_are_left_out_than_may_be():
    asked = []
    assert find_harmful(5, 0, lambda choices: asked.append(choices) or []) == asked == []
    assert find_harmful(5, 1, lambda choices: [-float(sum(numbers)) for numbers in choices]) == [4]


def test_many_are_left_out_in_groups_which_each_round_draws_anew():
    names = [f"node-{index}" for index in range(100)]
    first, second = make_groups(names, 7, 1), make_groups(names, 7, 2)
    assert len(first) == MAX_GROUPS
    assert sorted(itertools.chain(*first)) == sorted(names)
    assert first == make_groups(names, 7, 1) != second
    assert make_groups(names[:MAX_GROUPS], 7, 1) == [[name] for name in names[:MAX_GROUPS]]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_the_mean_is_that_of_the_others(tmp_path, order):
    vectors = honest(4)
    sent = [decode(CODEC.encode(vector), size=SIZE) for vector in vectors]
    hostile = sent[2].to_dense()

    def losses(means):
        return [float(mean @ hostile) for mean in means]

    check = HarmCheck(losses, lambda names: [[n] for n in names])
    mean = FixedPointMean(SIZE, terms=4)
    aggregator = RobustAggregator(mean, tmp_path, "topk-fp16", factor=100.0, check=check)
    for index in order:
        aggregator.add(f"node-{index}", 0.5, sent[index], CODEC.encode(vectors[index]))
    closed = aggregator.close()
    assert closed.contributions == {"node-2": 0.0}
    others = FixedPointMean(SIZE, terms=3)
    for index in (0, 1, 3):
        others.add(sent[index], 0.5)
    assert closed.mean.tobytes() == others.mean().tobytes()


# What is measured


def versions(feedback=True):
    vector = np.random.default_rng(1).normal(size=SIZE).astype(np.float32)
    return ModelVersions(vector, "ab" * 32, make_codec("topk-sign", density=0.1), feedback=feedback)


@pytest.mark.parametrize("feedback", [True, False])
def test_a_preview_is_what_publishing_would_make_and_changes_nothing(feedback):
    rng = np.random.default_rng(2)
    seen, untouched = versions(feedback), versions(feedback)
    for scale in (1.0, 0.5):
        step = rng.normal(size=SIZE).astype(np.float32)
        seen.preview(rng.normal(size=SIZE).astype(np.float32))
        published, target = seen.preview(step, scale)
        waits = untouched.state().get("residual", np.zeros(SIZE, np.float32))
        if feedback:
            np.testing.assert_allclose(target, untouched.vector + step + np.float32(scale) * waits, atol=1e-6)
        else:
            assert target.tobytes() == published.tobytes()
        assert seen.publish(step, scale) == untouched.publish(step, scale)
        assert seen.vector.tobytes() == published.tobytes()
        for name, array in untouched.state().items():
            assert seen.state()[name].tobytes() == array.tobytes()


def test_a_check_asks_for_the_models_of_the_step_and_leaves_the_optimizer_alone(tmp_path):
    model = GlobalModel(fake_grid.plan(tmp_path, server_optimizer="nesterov"), None)
    mean = np.full(fake_grid.SIZE, 0.01, np.float32)
    model.publish(mean, 1)
    before = model.optimizer_state()["velocity"].copy()
    asked = []

    def losses(models, number):
        asked.append((list(models), number))
        return [1.0, 3.0] * (len(asked[-1][0]) // 2)

    check = ReferenceCheck(losses, model.preview, 2)
    assert check([mean, mean]) == [2.0, 2.0]
    ((published, *_), number) = asked[0]
    assert number == 2
    assert model.optimizer_state()["velocity"].tobytes() == before.tobytes()
    assert model.publish(mean, 2)
    assert published.tobytes() == model.vector.tobytes()
    check([np.full(fake_grid.SIZE, 1e6, np.float32)])
    assert np.isnan(asked[-1][0]).all(), "a model beyond all weights is none"


def test_the_loss_is_the_tasks_own(learned):
    task, model = learned
    examples = load_reference_examples("auto", TABLE, task).select(range(20))
    rng = np.random.default_rng(0)
    vectors = [to_vector(model) + rng.normal(size=to_vector(model).size).astype(np.float32) / 50 for _ in range(3)]
    expected = []
    for vector in vectors:
        load_vector(model, vector)
        expected.append(task.evaluate(model, examples).loss)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = ReferenceLoss(model, task, examples, seed=7)(vectors, 1)
        assert found == ReferenceLoss(model, task, examples, seed=8)(vectors, 2)
    finally:
        torch.set_num_threads(threads)
    assert found == pytest.approx(expected, rel=1e-5)
    broken = vectors[0].copy()
    broken[5] = np.nan
    assert ReferenceLoss(model, task, examples, seed=7)([broken], 1) == [math.inf]


def test_each_round_takes_other_records_of_many(learned):
    task, model = learned
    examples = load_reference_examples("auto", TABLE, task)
    assert len(examples) == 69 > MAX_SEQUENCES
    measure = ReferenceLoss(model, task, examples, seed=7)
    vector = to_vector(model)
    assert len({measure([vector], number)[0] for number in range(1, 9)}) == 8
    assert measure([vector], 3) == measure([vector], 3)


# Which records


def test_what_a_built_in_sets_aside_is_at_no_site(learned):
    task, _ = learned
    found = {tuple(row) for row in load_reference_examples("auto", TABLE, task).input_ids.tolist()}
    for site in load_federation(TABLE, nodes=4, seed=7).sites:
        for part in (site.train, site.held_out):
            assert not found & {tuple(row) for row in part.input_ids.tolist()}


def test_without_records_there_are_none(learned):
    task, _ = learned
    assert load_reference_examples("off", TABLE, task) is None
    assert BUNDLES["digits"](None).public is None


def own(tmp_path, lines):
    path = tmp_path / "public.csv"
    path.write_text("\n".join(["x,y,outcome", *lines]) + "\n")
    data = DataSettings(
        source=str(tmp_path / "none.csv"),
        label_field="outcome",
        site_field="hospital",
        unit_field="patient",
        class_names=("ill", "well"),
        feature_fields=("x", "y"),
        feature_ranges={"x": (0, 1), "y": (0, 1)},
    )
    return str(path), data, make_public_task(data, ModelSettings())


def test_a_file_has_the_fields_of_the_records_but_no_sites(tmp_path):
    path, data, task = own(tmp_path, ["0.1,0.2,ill", "0.9,0.8,well", "0.2,0.1,ill"])
    examples = load_reference_examples(path, data, task)
    assert examples.labels.tolist() == [0, 1, 0]
    assert load_reference_examples("auto", data, task) is None


@pytest.mark.parametrize(
    ("reference", "lines", "said"),
    [
        (None, ["0.1,0.2,dead"], "dead"),
        ("gone.csv", [], r"gone\.csv"),
        ("atuo", [], "auto, off or a file"),
    ],
)
def test_records_that_cannot_be_used_are_named(tmp_path, reference, lines, said):
    path, data, task = own(tmp_path, lines)
    with pytest.raises(DataError, match=said):
        load_reference_examples(str(tmp_path / reference) if reference == "gone.csv" else reference or path, data, task)


def test_a_built_in_takes_no_file(tmp_path, learned):
    with pytest.raises(DataError, match="auto or off"):
        load_reference_examples(str(tmp_path / "x.csv"), TABLE, learned[0])


@pytest.mark.parametrize(
    ("settings", "is_used"),
    [
        ({"privacy": {"epsilon": 8.0}}, True),
        ({"privacy": {}}, False),
        ({"privacy": {"epsilon": 8.0}, "federation": {"aggregation": "mean"}}, False),
        ({"privacy": {"epsilon": 8.0}, "federation": {"reference": "off"}}, False),
        ({"privacy": {"epsilon": 8.0}, "client_privacy": {"epsilon": 4.0}}, False),
    ],
)
def test_records_are_looked_at_where_noise_hides_what_medians_show(learned, settings, is_used):
    scenario = Scenario(name="x", data=TABLE, **settings)
    assert (usable_reference(scenario, learned[0]) is not None) == is_used


# In a run's folder


def test_a_run_keeps_its_records(tmp_path, learned):
    task, model = learned
    examples = load_reference_examples("auto", TABLE, task)
    assert load_reference(tmp_path, None) is None
    sha256 = save_reference(tmp_path, examples, model=ModelSettings(), data=TABLE, seed=0)
    vector = to_vector(model)
    assert load_reference(tmp_path, sha256)([vector], 4) == ReferenceLoss(model, task, examples, seed=0)([vector], 4)


@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_damaged_or_missing_records_are_an_error_of_the_run(tmp_path, learned, harm):
    # A run that began with the check does not go on without it, nor by other records.
    examples = load_reference_examples("auto", TABLE, learned[0])
    sha256 = save_reference(tmp_path, examples, model=ModelSettings(), data=TABLE, seed=0)
    content = (tmp_path / REFERENCE).read_bytes()
    if harm == "gone":
        (tmp_path / REFERENCE).unlink()
    elif harm == "cut":
        (tmp_path / REFERENCE).write_bytes(content[: len(content) // 2])
    else:
        save_reference(tmp_path, examples.select(range(8)), model=ModelSettings(), data=TABLE, seed=0)
    with pytest.raises(ProjectError, match="start a new run"):
        load_reference(tmp_path, sha256)


@pytest.mark.parametrize("epsilon", [8.0, None])
def test_a_run_of_real_sites_is_prepared_with_them(tmp_path, epsilon):
    scenario = Scenario(name="x", data=TABLE, privacy={"epsilon": epsilon, "units": 100})
    prepare(build_deployed_model(scenario), tmp_path, 4)
    sha256 = RunFile.load(tmp_path).reference_sha256
    assert (load_reference(tmp_path, sha256) is not None) == (epsilon is not None)
