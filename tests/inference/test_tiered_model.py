"""Tiers of LiteModels whose times are known: which answers, why, and what is learned."""

import time

import pytest
from fake_sessions import FakeCosts
from tiny_lite_models import Recorded, make_inputs, make_model, make_texts, open_graph

from fedglm.inference.errors import InferenceError
from fedglm.inference.model import LiteModel
from fedglm.inference.tiered_model import TieredModel

KIND = "text-classification"
GREAT, SMALL = FakeCosts(fixed=20, each=0), FakeCosts(fixed=2, each=0)
"""Latencies that a device's file might tell: 20 and 2 ms a run."""


class Slow(Recorded):
    """A session whose runs take at least so many seconds."""

    seconds = 0.0

    def run(self, ids, cache=None, **options):
        time.sleep(self.seconds)
        return super().run(ids, cache, **options)


def tiers(kind=KIND, *, slow=None):
    return {
        "fp32": make_model(kind, seed=1, session=slow, costs=GREAT, cache_bytes=0),
        "int4": make_model(kind, seed=2, costs=SMALL, cache_bytes=0),
    }


@pytest.mark.parametrize(("budget_ms", "chosen"), [(25, "fp32"), (10, "int4"), (1, "int4")])
def test_the_best_that_fits_answers_and_says_why(budget_ms, chosen):
    models = tiers()
    answer = TieredModel(models, budget_ms=budget_ms).predict(["abc", {"text": "abd"}])
    assert answer.tier == chosen
    assert answer.answers == models[chosen].predict(["abc", "abd"])
    assert answer.choice.fits == (budget_ms > 1)
    assert chosen in answer.reason
    assert ("no tier fits" in answer.reason) == (budget_ms == 1)
    assert answer.measured_ms > 0


def test_texts_are_those_of_the_tier():
    models = tiers("language-model")
    model = TieredModel(models, budget_ms=10)
    texts = make_texts(3)
    assert model.answer(texts, 6).answers == models["int4"].answer(texts, 6)
    assert model.generate(texts, 6) == models["int4"].generate(texts, 6)
    assert model.generate(texts[0], 6, temperature=1.0, seed=3) == models["int4"].generate(
        texts[0], 6, temperature=1.0, seed=3
    )


def test_a_tier_that_takes_longer_than_the_budget_is_left():
    slow = Slow(open_graph(1))
    model = TieredModel(tiers(slow=slow), budget_ms=25)
    assert model.predict(["a"]).tier == "fp32"
    slow.seconds = 0.2
    used = [model.predict([f"a{number}"]).tier for number in range(12)]
    assert used[0] == "fp32"
    assert used[-1] == "int4"
    assert "fp32" not in used[used.index("int4") :], "and not gone back to after a few answers"
    assert model.info()["budget_ms"] == 25


def test_what_is_measured_is_for_each_row_that_was_read():
    slow = Slow(open_graph(1))
    slow.seconds = 0.1
    model = TieredModel(tiers(slow=slow), budget_ms=1000)
    assert model.predict(["a"] * 20).measured_ms >= 100, "equal rows are read once"
    assert 100 / 20 <= model.predict(make_texts(20)).measured_ms < 100
    nothing = model.predict([])
    assert (nothing.answers, nothing.measured_ms) == ([], None)


def test_without_a_device_file_times_are_measured_at_first():
    models = {name: make_model(seed=number, cache_bytes=0) for number, name in enumerate(("one", "other"))}
    expected = [tier["expected_ms"] for tier in TieredModel(models, budget_ms=5).info()["tiers"].values()]
    assert all(0 < each < 1000 for each in expected)


def test_what_does_not_fit_is_named():
    classifier = make_model(KIND, cache_bytes=0)
    others = LiteModel(open_graph(), make_inputs(KIND, classes=[f"d{n}" for n in range(64)]), facts={}, cache_bytes=0)
    for models, said in [
        ({}, "at least one tier"),
        ({"a": classifier, "b": make_model(cache_bytes=0)}, "tier b is not of the same task"),
        ({"a": classifier, "b": others}, "tier b is not of the same task and classes"),
        ({"a": make_model(KIND)}, "tier a keeps answers"),
    ]:
        with pytest.raises(InferenceError, match=said):
            TieredModel(models, budget_ms=10)
    with pytest.raises(InferenceError, match="above 0 ms"):
        TieredModel(tiers(), budget_ms=0)
    with pytest.raises(InferenceError, match="generates no text: use predict"):
        TieredModel(tiers(), budget_ms=10).generate("a")
