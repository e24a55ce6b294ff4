"""What a search takes from earlier ones: the same bits with it and without, and never what something else decided."""

import json
import shutil
from dataclasses import fields

import pytest
import torch
from tiny_searches import CLASSES, TERNARY, make_plan, make_recipe, make_search, run_search

from fedglm.autoglm.light.cache import identity
from fedglm.autoglm.light.cache.store import Entry, Store
from fedglm.autoglm.light.plan.lighten_plan import train_for
from fedglm.autoglm.light.pruning.settings import Budget, PruningSettings
from fedglm.autoglm.light.search.pipeline import Source
from fedglm.autoglm.light.search.trial_cache import TrialCache

pytestmark = pytest.mark.usefixtures("unsynced")


def open_cache(folder, said=None):
    return TrialCache(Store(folder, warn=(said if said is not None else []).append))


def cut(dense):
    """A recipe that leaves the layers narrower."""
    parameters = int(0.8 * dense.parameters)
    return make_recipe("cut", scheme=TERNARY, pruning=PruningSettings(budget=Budget(parameters=parameters)))


def run_three_times(folder, *, compares):
    """A search made without a cache, with an empty one, and with a full one."""
    search = make_search()
    # The table has a row of the chosen cut alone, where what is chosen is cut.
    recipes = [cut(search[0])] if compares else [make_recipe(), cut(search[0])]
    plan = make_plan(search[0], *recipes, finalists=2)
    runs = {"without": run_search(plan, search, folder / "without", compares=compares)}
    for name in ("empty", "full"):
        runs[name] = run_search(plan, search, folder / name, compares=compares, cache=open_cache(folder / "cache"))
    return folder, search, plan, runs


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return run_three_times(tmp_path_factory.mktemp("kept"), compares=False)


def figures(result):
    rows = [(row.name, row.bytes, row.parameters, row.loss_rise, row.quality) for row in result.rows]
    trials = [(one.recipe, one.bytes, one.held_out_loss, one.quality, one.loss_rise) for one in result.trials]
    return rows, trials, result.facts


def check_same(runs):
    (without, files), others = runs["without"], [runs["empty"], runs["full"]]
    assert files
    for result, other_files in others:
        assert other_files == files
        assert figures(result) == figures(without)
    for one, other in zip(without.trials, runs["full"][0].trials, strict=True):
        ours, theirs = (dict(trial.light.quantized.reference.named_parameters()) for trial in (one, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_with_and_without_a_cache_all_bits_and_figures_are_the_same(kept):
    *_, runs = kept
    check_same(runs)


@pytest.mark.slow
def test_so_are_the_tables(tmp_path):
    *_, runs = run_three_times(tmp_path, compares=True)
    check_same(runs)
    empty, full = (runs[name][0].bench.cache for name in ("empty", "full"))
    assert full.made == 0
    assert full.found == empty.made == 8  # adapted, control, the candidate, three alone, pruned, student
    assert "pruned, float32" in [row.name for row in runs["full"][0].rows]


def test_a_full_cache_trains_nothing_and_counts(kept):
    *_, runs = kept
    empty, full = (runs[name][0].bench.cache for name in ("empty", "full"))
    assert (empty.found, empty.made, full.found, full.made) == (0, 4, 4, 0)


def test_another_target_takes_what_is_the_same(kept, tmp_path):
    folder, search, plan, _ = kept
    cache = open_cache(folder / "cache")
    other = plan.model_copy(update={"goals": plan.goals.model_copy(update={"max_bytes": 10**5})})
    run_search(other, search, tmp_path / "light", cache=cache)
    assert (cache.found, cache.made) == (4, 0)


def change_environment(monkeypatch, name):
    if name == "code":
        monkeypatch.setattr(identity, "code_sha256", lambda: "0" * 64)
    elif name == "torch":
        monkeypatch.setattr(identity, "version", lambda _: "0.0")
    elif name == "processor":
        monkeypatch.setattr(identity, "_describe_processor", lambda: {"name": "another"})
    else:
        monkeypatch.setattr(torch.__config__, "parallel_info", lambda: "one thread more")


@pytest.mark.parametrize("name", ["code", "torch", "processor", "threads"])
def test_other_code_or_another_machine_finds_nothing(monkeypatch, name):
    before = identity.hash_machine()
    assert identity.hash_machine() == before
    change_environment(monkeypatch, name)
    assert identity.hash_machine() != before


SETTINGS = train_for(3)
DECIDING = {
    "model": (lambda: make_search(seed=1), SETTINGS, 0),
    "text": (lambda: make_search(text_seed=1), SETTINGS, 0),
    "task": (lambda: make_search(CLASSES), SETTINGS, 0),
    "steps": (make_search, train_for(4), 0),
    "seed": (make_search, SETTINGS, 1),
}


@pytest.mark.parametrize("change", DECIDING)
def test_whatever_decides_the_bits_decides_the_key(change, tmp_path):
    """The stub trains nothing; what counts is whether it is asked."""
    cache = open_cache(tmp_path)
    for made, (search, settings, seed) in enumerate([(make_search, SETTINGS, 0), DECIDING[change]], start=1):
        _, start = search()
        for _ in range(2):
            cache.train(start, settings, seed, lambda start=start: (start.model, False))
        assert (cache.found, cache.made) == (made, made)


def test_a_recipe_decides_but_for_its_name(kept):
    folder, _, plan, runs = kept
    adapted, cache, recipe = runs["full"][0].bench.source, open_cache(folder / "cache"), plan.candidates[0]

    def make():
        raise LookupError

    named = recipe.model_copy(update={"name": "another name"})
    assert cache.make_light(adapted, named, 0, make).light.recipe.name == "another name"
    others = [(adapted, make_recipe(scheme=TERNARY), 0), (adapted, recipe, 1), (make_search(seed=1)[1], recipe, 0)]
    for start, other, seed in others:
        with pytest.raises(LookupError):
            cache.make_light(start, other, seed, make)


def test_everything_in_a_source_is_hashed():
    """A field that is new here must go into the key of `TrialCache`, if it decides a bit."""
    assert {field.name for field in fields(Source)} == {"model", "task", "text", "test"}


def test_a_damaged_entry_is_said_and_made_again(kept, tmp_path):
    folder, search, plan, runs = kept
    said = []
    shutil.copytree(folder / "cache", tmp_path / "cache", copy_function=shutil.copy)
    cache = open_cache(tmp_path / "cache", said)
    candidates = [path for path in (tmp_path / "cache").glob("*.json") if "held_out_loss" in path.read_text()]
    path = candidates[0].with_suffix(".safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result, files = run_search(plan, search, tmp_path / "light", cache=cache)
    assert (cache.found, cache.made, len(said)) == (3, 1, 1)
    assert "dropped" in said[0]
    assert files == runs["without"][1]
    assert figures(result) == figures(runs["without"][0])


@pytest.mark.parametrize("weights", [None, b"other", b"\0" * 100])
def test_an_entry_of_other_content_with_its_hashes_is_dropped(weights, tmp_path):
    said = []
    _, source = make_search()

    def train(cache):
        return cache.train(source, SETTINGS, 0, lambda: (source.model, False))

    train(open_cache(tmp_path))
    store = Store(tmp_path)
    for path in tmp_path.glob("*.json"):
        store.save(path.stem, Entry(facts={}, weights=weights))
    cache = open_cache(tmp_path, said)
    train(cache)
    assert (cache.found, cache.made, len(said)) == (0, 1, 1)


def test_what_was_interrupted_is_not_kept(tmp_path):
    """Ctrl-C in the candidate's training: the adapted model and the control are whole, and kept."""
    search = make_search()
    plan = make_plan(search[0], make_recipe())
    interrupted = []

    def progress(what, share):
        if what == "int4: train" and 0 < share < 1 and not interrupted:
            interrupted.append(what)
            raise KeyboardInterrupt

    for found, made in ((0, 3), (2, 1), (3, 0)):
        cache = open_cache(tmp_path / "cache")
        run_search(plan, search, tmp_path / "light", cache=cache, progress=progress)
        assert (cache.found, cache.made) == (found, made)
    assert interrupted


def test_what_is_kept_is_json_and_safetensors(kept):
    folder, *_ = kept
    for path in (folder / "cache").iterdir():
        assert path.suffix in (".json", ".safetensors") or path.name == "lock"
        if path.suffix == ".json":
            json.loads(path.read_text())
