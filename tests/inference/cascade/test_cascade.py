import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.inference.cascade.cascade import Cascade, CascadeCounts
from fedglm.inference.cascade.entropy import normalized_entropy
from fedglm.inference.errors import InferenceError


def rows_of(count, classes, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.5), count).astype(np.float32)


class Model:
    """Rows are numbers; a row's probabilities are those of its number."""

    def __init__(self, table):
        self.table, self.asked = table, []

    def __call__(self, rows):
        self.asked.append(list(rows))
        return self.table[list(rows)]


@given(st.integers(2, 9), st.integers(1, 20), st.integers(0, 99))
def test_entropy_is_what_its_formula_says(classes, count, seed):
    rows = rows_of(count, classes, seed).astype(np.float64)
    expected = [-sum(p * np.log(p) for p in row if p > 0) / np.log(classes) for row in rows]
    assert normalized_entropy(rows) == pytest.approx(expected, abs=1e-9)


def test_entropy_runs_from_certain_to_uniform():
    assert normalized_entropy([[1, 0, 0], [1 / 3] * 3]).tolist() == pytest.approx([0, 1])
    assert normalized_entropy(np.empty((0, 2))).shape == (0,)


@pytest.mark.parametrize("rows", [[0.5, 0.5], [[1.0]], [[0.6, 0.6]], [[1.5, -0.5]], [[np.nan, 1.0]]])
def test_what_is_no_distribution_is_refused(rows):
    with pytest.raises(InferenceError, match="probabilities"):
        normalized_entropy(rows)


@given(st.floats(-1, 1), st.integers(0, 12))
def test_the_larger_model_is_asked_about_the_unsure_rows_alone_and_once(threshold, count):
    small, large = Model(rows_of(12, 3, 1)), Model(rows_of(12, 3, 2))
    cascade = Cascade(small, large, threshold=threshold)
    answers = cascade.predict(range(count))
    unsure = [row for row in range(count) if normalized_entropy(small.table[[row]])[0] > threshold]
    assert large.asked == ([unsure] if unsure else [])
    assert [answer.went_up for answer in answers] == [row in unsure for row in range(count)]
    for row, answer in enumerate(answers):
        said = large.table[row] if row in unsure else small.table[row]
        assert answer.probabilities.tolist() == said.tolist()
        assert answer.label == said.argmax()
        assert answer.small.tolist() == small.table[row].tolist()
        assert answer.threshold == threshold
        assert answer.went_up == (answer.entropy > threshold)
    changed = sum(small.table[row].argmax() != large.table[row].argmax() for row in unsure)
    assert cascade.counts() == CascadeCounts(rows=count, went_up=len(unsure), changed=changed)


def test_models_that_do_not_belong_together_are_refused():
    with pytest.raises(InferenceError, match="same classes"):
        Cascade(Model(rows_of(4, 3)), Model(rows_of(4, 2)), threshold=-1).predict([0, 1])
    with pytest.raises(InferenceError, match="1 of 2 rows"):
        Cascade(lambda _: rows_of(1, 2), Model(rows_of(4, 2)), threshold=1).predict([0, 1])
    with pytest.raises(InferenceError, match="threshold"):
        Cascade(Model(rows_of(4, 3)), Model(rows_of(4, 2)), threshold=float("nan"))


def test_counts_add_up_over_threads():
    cascade = Cascade(Model(rows_of(50, 3, 1)), Model(rows_of(50, 3, 2)), threshold=0.5)
    one = cascade.predict(range(50))
    threads = [threading.Thread(target=cascade.predict, args=(range(50),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    up = sum(answer.went_up for answer in one)
    assert (cascade.counts().rows, cascade.counts().went_up) == (450, 9 * up)
