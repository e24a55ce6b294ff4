"""The batcher around ONNX Runtime: the same texts as alone, from threads, in batches of unequal lengths."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fake_sessions import FakeCosts
from small_glms import VOCAB, config_of, random_classifier, random_glm, relative_error, small_config, tensors_of

from fedglm.autoglm.light.graph.formats import choose_formats
from fedglm.autoglm.light.graph.model import build_skeleton
from fedglm.inference.batching.batcher import Batcher
from fedglm.inference.batching.measured_costs import measure_costs
from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.graph_session import GraphSession

CHEAP_BATCHES = FakeCosts(fixed=10, each=0.01)


def open_session(model):
    tensors, config = tensors_of(model), config_of(model)
    return GraphSession.open(build_skeleton(config, choose_formats(tensors, config, "fp32")), tensors, config)


@pytest.fixture(scope="module")
def session():
    return open_session(random_glm(small_config()))


def write(run, prompt, steps):
    """Greedy tokens, and the logits of each step."""
    tokens, found, cache, ids = [], [], None, prompt
    for _ in range(steps):
        logits, cache = run(ids, cache)
        found.append(logits[0, -1])
        tokens.append(int(logits[0, -1].argmax()))
        ids = np.array([[tokens[-1]]])
    return tokens, np.array(found)


def prompts(count):
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCAB, (1, size)) for size in rng.integers(1, 20, count)]


def test_texts_of_many_threads_are_those_written_alone(session):
    texts = [(prompt, 5 + 2 * number) for number, prompt in enumerate(prompts(10))]
    with Batcher(session, CHEAP_BATCHES) as batcher, ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda text: write(batcher.run, *text), texts))
        batches = batcher.counts().batches
    for (prompt, steps), (tokens, logits) in zip(texts, found, strict=True):
        alone, expected = write(session.run, prompt, steps)
        assert relative_error(logits, expected) < 1e-5
        assert tokens == alone
    assert max(batches) > 1


def test_texts_that_the_batcher_decodes_are_those_written_alone(session):
    texts = [(prompt, 4 + number) for number, prompt in enumerate(prompts(8))]
    with Batcher(session, CHEAP_BATCHES) as batcher:
        found = [[] for _ in texts]

        def chooser(tokens, steps):
            def choose(logits):
                tokens.append(int(logits.argmax()))
                return tokens[-1] if len(tokens) < steps else None

            return choose

        futures = [batcher.decode(prompt, chooser(tokens, steps)) for (prompt, steps), tokens in
                   zip(texts, found, strict=True)]  # fmt: skip
        lengths = [future.result(30)[1].length for future in futures]
    assert found == [write(session.run, *text)[0] for text in texts]
    assert lengths == [prompt.shape[1] + steps - 1 for prompt, steps in texts]


def test_rows_of_a_classifier_share_a_run():
    session = open_session(random_classifier())
    rows = prompts(12)
    with Batcher(session, CHEAP_BATCHES) as batcher:
        futures = [batcher.submit(row) for row in rows]
        found = np.stack([future.result(30)[0][0, 0] for future in futures])
        batches = batcher.counts().batches
    expected = np.stack([session.run(row)[0][0, 0] for row in rows])
    assert relative_error(found, expected) < 1e-5
    assert max(batches) > 1


def test_a_cache_is_joined_skipped_and_simplified(session):
    short, long = prompts(2)[:2] if prompts(2)[0].shape < prompts(2)[1].shape else prompts(2)[::-1]
    _, one = session.run(short)
    _, other = session.run(long)
    joined = one.join([other])
    missing = long.shape[1] - short.shape[1]
    assert (joined.length, joined.batch) == (long.shape[1], 2)
    assert joined.mask.sum(axis=1).tolist() == [short.shape[1], long.shape[1]]
    back = joined.select(np.array([0])).skip(missing)
    assert back.mask is None
    assert all(np.array_equal(a, b) for a, b in zip(back.arrays, one.arrays, strict=True))
    assert joined.select(np.array([1])).mask is None
    with pytest.raises(InferenceError, match="not all padding"):
        joined.skip(missing)
    with pytest.raises(InferenceError, match="not all padding"):
        one.skip(1)
    assert one.join([]).mask is None


def test_measured_costs_are_those_of_the_session(session):
    costs = measure_costs(session, batches=(1, 4), lengths=(1, 8, 500), repeats=2)
    assert costs.measured.keys() == {(1, 1), (4, 1), (1, 8), (4, 8)}  # 500 tokens are more than it takes
    assert costs.milliseconds(4, 64) > costs.milliseconds(1, 1)
