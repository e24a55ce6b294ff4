"""Repair of what deviates: bits where the goals have room, else training, and only what lowers the loss is kept."""

import hashlib
import json

import pytest
from tiny_searches import STEPS, TERNARY, make_plan, make_recipe, make_search, run_search

from fedglm.autoglm.light.quantization.scheme import STEPS as CODES
from fedglm.autoglm.light.search.measures import find_rise
from fedglm.autoglm.light.search.record import make_record
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust

pytestmark = pytest.mark.usefixtures("unsynced")

RECIPE = make_recipe("ternary", scheme=TERNARY, min_cosine=0.98)


def measures(folder):
    facts = open_release(folder, trust=Trust.unverified()).manifest.facts
    return {measure.name: measure for measure in facts.measures}, facts


def run(recipe, folder, *, tolerance=10.0, **changes):
    search = make_search()
    result, _ = run_search(make_plan(search[0], recipe, tolerance=tolerance, **changes), search, folder)
    return search, result


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """Goals that have room for more bits in every layer."""
    folder = tmp_path_factory.mktemp("roomy") / "light"
    return folder, *run(RECIPE, folder)


@pytest.fixture(scope="module")
def tight(tmp_path_factory, roomy):
    """Goals that the model without a repair just meets."""
    _, _, result = roomy
    folder = tmp_path_factory.mktemp("tight") / "light"
    return folder, *run(RECIPE, folder, max_bytes=result.repair.before.bytes + 100)


def test_with_room_what_deviates_gets_the_next_more_bits(roomy):
    _, _, result = roomy
    found = result.repair
    before = {layer.name: layer for layer in found.before.light.quantized.report.layers}
    after = {layer.name: layer for layer in found.after.light.quantized.report.layers}
    assert found.deviating == tuple(name for name, layer in before.items() if layer.cosine < 0.98)
    assert found.way == "bits"
    assert set(found.layers) == {name for name in found.deviating if before[name].scheme.startswith("ternary")}
    for name, layer in after.items():
        if name in found.layers:
            assert layer.scheme.split()[0] == CODES[CODES.index("ternary") + 1]
            assert layer.repair == (
                f"{before[name].scheme} -> {layer.scheme}: cosine {before[name].cosine:.4f} -> {layer.cosine:.4f}",
            )
        else:
            assert (layer.scheme, layer.repair) == (before[name].scheme, ())


def test_only_what_lowers_the_loss_is_kept(roomy, tight):
    for _, _, result in (roomy, tight):
        found = result.repair
        assert found.kept == (found.after.held_out_loss < found.before.held_out_loss)
        assert result.chosen is (found.after if found.kept else found.before)
        assert found.after in result.trials
    assert roomy[2].repair.kept


def test_without_room_it_trains_on_and_so_does_its_control(tight):
    _, (_, source), result = tight
    found, bench = result.repair, result.bench
    assert found.way == "training"
    assert found.layers == found.deviating
    assert found.after.recipe.steps == STEPS + 1
    assert found.after.held_out_loss <= found.before.held_out_loss  # it starts from the weights that were kept
    control = bench.find_control(found.after.recipe, lambda *_: None)
    assert control is not bench.control
    assert bench.find_control(found.before.recipe, lambda *_: None) is bench.control
    assert found.after.loss_rise == find_rise(source.task, found.after.quality, control.quality)


@pytest.mark.slow
def test_as_many_as_fit_get_more_bits_the_worst_first(roomy, tmp_path):
    """Room for about half of what a repair of all layers takes."""
    _, _, all_repaired = roomy
    found = all_repaired.repair
    middle = (found.before.bytes + found.after.bytes) // 2
    _, result = run(RECIPE, tmp_path / "light", max_bytes=middle)
    some = result.repair
    assert some.way == "bits"
    assert 0 < len(some.layers) < len(found.layers)
    assert some.layers[0] == found.layers[0]
    assert result.size.bytes <= middle


@pytest.mark.parametrize(
    ("recipe", "changes", "outcome"),
    [
        (make_recipe("ternary", scheme=TERNARY), {}, "no layer deviates"),
        (RECIPE, {"repair": False}, "the plan asks for none"),
    ],
)
def test_nothing_is_tried_where_nothing_deviates_or_none_is_asked_for(recipe, changes, outcome, tmp_path):
    _, result = run(recipe, tmp_path / "light", **changes)
    assert (result.repair.way, result.repair.after, result.repair.outcome) == (None, None, outcome)
    assert bool(result.repair.deviating) == bool(changes)
    count = measures(tmp_path / "light")[0]["layers repaired, of those that deviate"]
    assert (count.value, count.n) == (0, len(result.repair.deviating))


def test_the_manifest_and_the_card_say_which_and_what_it_gained(roomy):
    folder, _, result = roomy
    found, (known, facts) = result.repair, measures(folder)
    count, before = known["layers repaired, of those that deviate"], known["loss without the repair, nats"]
    assert (count.value, count.n) == (len(found.layers), len(found.deviating))
    assert before.value == pytest.approx(found.before.quality.loss, rel=1e-4)
    assert all(name in facts.settings for name in found.layers)
    assert "loss without the repair" in (folder / "README.md").read_text()


def test_the_record_says_so_too(roomy):
    _, (dense, _), result = roomy
    record = json.loads(json.dumps(make_record(dense, result, seconds=1.0, origin="random tokens")))
    found = result.repair
    assert record["repair"]["layers"] == list(found.layers)
    assert record["repair"]["loss_before"] == found.before.quality.loss
    assert record["loss"] == record["repair"]["loss_after"] == found.after.quality.loss
    assert "repair layers that deviate" in record["stages"]


def test_a_released_plan_makes_the_same_weights_again(roomy, tmp_path):
    """It holds the repaired recipe, and repairs nothing more."""
    folder, search, result = roomy
    plan = result.plan.model_copy(update={"candidates": (result.chosen.recipe,), "repair": False})
    _, files = run_search(plan, search, tmp_path / "again")
    assert files["weights.safetensors"] == hash_file(folder / "weights.safetensors")


def hash_file(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
