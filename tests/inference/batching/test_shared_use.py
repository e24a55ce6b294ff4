"""One LiteModel for many threads: their texts and rows share runs, and are those of each alone."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fake_sessions import FakeCosts
from tiny_lite_models import CLASSES, LetterTokenizer, Recorded, make_model, make_texts, open_graph

from fedglm.inference.batching.measured_costs import measure_costs
from fedglm.inference.batching.settings import BatchingSettings
from fedglm.inference.errors import BatcherClosedError, InferenceError, QueueFullError

CHEAP_BATCHES = FakeCosts(fixed=10, each=0.001)
"""Of a session for which every batch pays."""


def at_once(call, items):
    """Results of a thread for each item, which begin together."""
    gate = threading.Barrier(len(items))

    def wait(item):
        gate.wait(20)
        return call(item)

    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(wait, items))


def batched(kind="language-model", *, settings=True, costs=CHEAP_BATCHES, **options):
    return make_model(kind, batching=settings, costs=costs, **options)


@pytest.mark.parametrize("cache_bytes", [0, 2**23])
def test_texts_of_threads_are_those_written_alone(cache_bytes):
    texts = make_texts(8) + make_texts(8, most=8, begin="one beginning of them all ")
    alone = [make_model(cache_bytes=0).answer([text], 20)[0] for text in texts]
    with batched(cache_bytes=cache_bytes) as model:
        assert at_once(lambda text: model.answer([text], 20)[0], texts) == alone
        assert at_once(lambda text: "".join(model.stream(text, 20)), texts) == [answer.text for answer in alone]
        assert model.answer(texts, 20) == alone
        counts = model.info()["batching"]
    assert max(counts["batches"]) > 1
    assert counts["accepted"] == counts["answered"]


def test_drawn_texts_have_the_draws_of_their_seed():
    sampling = {"temperature": 1.0, "seed": 5, "top_k": 20}
    texts = make_texts(6)
    alone = make_model(cache_bytes=0).generate(texts, 12, **sampling)
    with batched() as model:
        assert model.generate(texts, 12, **sampling) == alone


def test_rows_of_threads_are_those_classified_alone():
    calls = [make_texts(count, most=31, seed=count) for count in (1, 2, 1, 40, 7, 1)]
    plain = make_model("text-classification", cache_bytes=0)
    alone = [plain.predict(rows) for rows in calls]
    with batched("text-classification") as model:
        found = at_once(model.predict, calls)
        assert max(model.info()["batching"]["batches"]) > 1
    for one, other in zip(found, alone, strict=True):
        assert [each.label for each in one] == [each.label for each in other]
        near = np.array([[*each.probabilities.values()] for each in other])
        assert np.array([[*each.probabilities.values()] for each in one]) == pytest.approx(near, rel=1e-4)
    assert list(found[0][0].probabilities) == list(CLASSES)


def test_costs_are_measured_within_their_time_and_used():
    session = Recorded(open_graph())
    with make_model(session=session, batching=BatchingSettings(measure_s=0.2)) as model:
        assert max(batch for batch, _ in session.runs) > 1, "a small model has time for more than batch 1"
        assert model.generate("abc", 3) == make_model().generate("abc", 3)
    assert measure_costs(session, lengths=(1, 8), seconds=0.0).measured.keys() == {(1, 1), (1, 8)}
    with pytest.raises(InferenceError, match="begins with batch 1"):
        measure_costs(session, batches=(2, 4))


def test_a_call_waits_for_its_own_when_the_queue_is_full():
    rows, texts = make_texts(50, most=31), make_texts(50)
    few = BatchingSettings(max_waiting=2)
    with batched("text-classification", settings=few, cache_bytes=0) as model:
        assert [each.label for each in model.predict(rows)] == [
            each.label for each in make_model("text-classification").predict(rows)
        ]
    with batched(settings=few, cache_bytes=0) as model:
        assert model.generate(texts, 4) == make_model().generate(texts, 4)


class Held(Recorded):
    """A session whose runs wait, from one on, until they are let go."""

    def __init__(self, session, first=0):
        super().__init__(session)
        self.first, self.held, self.let_go = first, threading.Event(), threading.Event()

    def run(self, ids, cache=None, **options):
        if len(self.runs) >= self.first:
            self.held.set()
            assert self.let_go.wait(20)
        return super().run(ids, cache, **options)


def test_a_full_queue_of_others_is_said():
    session = Held(open_graph())
    one_waits = BatchingSettings(max_waiting=1)
    with batched(session=session, settings=one_waits) as model, ThreadPoolExecutor(2) as pool:
        first = pool.submit(model.generate, "a", 2)
        assert session.held.wait(20)
        second = pool.submit(model.generate, "b", 2)
        while not model.info()["batching"]["waiting"]:
            time.sleep(0.001)
        with pytest.raises(QueueFullError, match="ask again later"):
            model.generate("c", 2)
        session.let_go.set()
        assert [first.result(20), second.result(20)] == make_model().generate(["a", "b"], 2)


def test_a_stream_that_is_left_goes_no_further():
    session = Recorded(open_graph())
    with batched(session=session) as model:
        pieces = model.stream("abcd", 40)
        next(pieces)
        pieces.close()
        assert len(session.runs) <= 3
        assert model.generate("abcd", 5) == make_model().generate("abcd", 5)


class Broken(Held):
    """A session whose output is not a number behind the tenth letter."""

    def run(self, ids, cache=None, **options):
        logits, cache = super().run(ids, cache, **options)
        logits[(ids == 9).any(axis=1)] = np.nan
        return logits, cache


def test_a_call_that_fails_withdraws_its_other_texts():
    session = Broken(open_graph(), first=2)
    with batched(session=session) as model:
        with pytest.raises(InferenceError, match="not a number"):
            model.generate(["aj", "abcd"], 40)
        session.let_go.set()
    counts = model.info()["batching"]
    assert (counts["accepted"], counts["failed"], counts["cancelled"]) == (2, 1, 1)
    assert len(session.runs) <= 4


def test_what_fails_fails_alone():
    texts = ["abc", "aj", "abcd"]  # j is the tenth letter
    with batched(session=Broken(open_graph(), first=99)) as model:

        def ask(text):
            try:
                return model.generate(text, 1)
            except InferenceError as exc:
                return str(exc)

        found = at_once(ask, texts)
    assert "not a number" in found[1]
    assert [found[0], found[2]] == [make_model().generate(text, 1) for text in (texts[0], texts[2])]


def test_it_is_closed_once_and_says_so():
    model = batched()
    model.close()
    model.close()
    for call in (lambda: model.generate("abc"), lambda: list(model.stream("abc"))):
        with pytest.raises(BatcherClosedError, match="closed: open another"):
            call()
    plain = make_model()
    plain.close()
    assert "batching" not in plain.info()
    assert len(plain.generate("abc", 2)) <= 2, "a model that does not batch has nothing to end"


def test_settings_out_of_range_are_refused():
    for settings in (BatchingSettings(max_batch=0), BatchingSettings(deadline_ms=-1)):
        with pytest.raises(InferenceError, match="0 ms or more"):
            batched(settings=settings)


def test_latency_is_measured_or_by_the_costs():
    assert batched().latency_ms() == CHEAP_BATCHES.milliseconds(1, 1)
    assert batched("text-classification").latency_ms() == CHEAP_BATCHES.milliseconds(1, 32)
    with make_model(batching=True) as model:
        assert 0 < model.latency_ms() < 1000


def test_letters_come_back():
    assert "".join(map(LetterTokenizer().feed, LetterTokenizer().encode_prompt("abc 9"))) == "abc 9"
