"""Two LiteModels in a cascade: who answers, what goes up, and a threshold that is set on rows."""

import numpy as np
import pytest
from tiny_lite_models import CLASSES, Recorded, make_inputs, make_model, make_texts, open_graph

from fedglm.inference.cascade.cascade_model import CascadeModel
from fedglm.inference.cascade.entropy import normalized_entropy
from fedglm.inference.errors import InferenceError
from fedglm.inference.model import LiteModel

KIND = "text-classification"


@pytest.fixture(scope="module")
def pair():
    return make_model(KIND, seed=1), make_model(KIND, seed=2)


def test_each_prediction_is_that_of_the_model_that_it_names(pair):
    small, large = pair
    rows = make_texts(30, most=31)
    entropies = normalized_entropy([[*each.probabilities.values()] for each in small.predict(rows)])
    cascade = CascadeModel(small, large, threshold=float(np.median(entropies)))
    found = cascade.predict(rows)
    assert {each.answered_by for each in found} == {"small", "large"}
    for row, each, entropy in zip(rows, found, entropies, strict=True):
        (alone,) = (large if entropy > cascade.threshold else small).predict([row])
        assert each.answered_by == ("large" if entropy > cascade.threshold else "small")
        assert (each.label, each.probabilities, each.is_cut) == (alone.label, alone.probabilities, alone.is_cut)
        assert each.entropy == pytest.approx(entropy)
        assert each.to_dict() == alone.to_dict() | {"answered_by": each.answered_by, "entropy": each.entropy}
    up = sum(each.answered_by == "large" for each in found)
    info = cascade.info()
    assert (info["rows"], info["went_up"], info["share_up"]) == (30, up, up / 30)
    assert (info["small"]["labels"], info["fitted"]) == (list(CLASSES), None)


def test_the_larger_model_reads_the_unsure_rows_alone():
    session = Recorded(open_graph(2))
    small, large = make_model(KIND, seed=1), make_model(KIND, session=session)
    assert [each.answered_by for each in CascadeModel(small, large, threshold=1).predict(["a", "b"])] == ["small"] * 2
    assert session.runs == []
    assert [each.answered_by for each in CascadeModel(small, large, threshold=-1).predict(["a", "b"])] == ["large"] * 2
    assert session.runs == [(2, 2)]
    empty = CascadeModel(small, large, threshold=0.5)
    assert empty.predict([]) == []
    assert empty.info()["share_up"] is None


def test_as_many_go_up_as_a_share_allows(pair):
    rows = make_texts(200, most=31)
    model = CascadeModel.fit(*pair, rows, share_up=0.25)
    assert sum(each.answered_by == "large" for each in model.predict(rows)) == 50
    assert model.info()["fitted"]["threshold"]["share_up"] == 0.25
    assert model.fitted.accuracy is None


def test_the_agreement_that_was_asked_for_holds_on_other_rows(pair):
    small, large = pair
    rows = make_texts(600, most=31)
    labels = [each.label for each in large.predict(rows)]
    model = CascadeModel.fit(small, large, rows[:400], agreement=0.8, labels=labels[:400])
    fitted = model.fitted
    assert fitted.threshold.agreement_at_least >= 0.8
    assert 0 < fitted.threshold.share_up < 1
    # The larger model's answers pass for the truth, so that the accuracy of the cascade is its agreement.
    assert fitted.accuracy["large"] == 1
    assert fitted.accuracy["cascade"] == fitted.threshold.agreement > fitted.accuracy["small"]
    agreeing = np.mean(
        [each.label == label for each, label in zip(model.predict(rows[400:]), labels[400:], strict=True)]
    )
    # Three standard deviations of a share of 200 below: a threshold that gave less would not pass.
    assert agreeing > 0.8 - 3 * (0.8 * 0.2 / 200) ** 0.5


def test_too_few_rows_to_be_sure_of_anything_all_go_up(pair):
    model = CascadeModel.fit(*pair, make_texts(10), agreement=0.95)
    assert model.info()["fitted"]["threshold"]["share_up"] == 1


def test_models_and_rows_that_do_not_fit_are_named(pair):
    small, large = pair
    other = LiteModel(open_graph(), make_inputs(KIND, classes=CLASSES[::-1]), facts={})
    for models, said in [((small, make_model()), "language model"), ((other, large), "the same classes")]:
        with pytest.raises(InferenceError, match=said):
            CascadeModel(*models, threshold=0.5)
        with pytest.raises(InferenceError, match=said):
            CascadeModel.fit(*models, ["a"])
    with pytest.raises(InferenceError, match="row 2: no field 'text'"):
        CascadeModel(small, large, threshold=0.5).predict(["a", {"note": "b"}])
    for options, said in [
        ({"agreement": 0.9, "share_up": 0.1}, "give one of them"),
        ({"agreement": 1.1}, "within 0 to 1"),
        ({"labels": ["c0"]}, "the class of each of 2 rows"),
        ({"labels": ["c0", "no class"]}, "the class of each of 2 rows"),
    ]:
        with pytest.raises(InferenceError, match=said):
            CascadeModel.fit(small, large, ["a", "b"], **options)
    with pytest.raises(InferenceError, match="same examples"):
        CascadeModel.fit(small, large, [])
