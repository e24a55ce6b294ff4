"""The batcher with real threads: every answer is the right one, and what goes wrong stays with whom it belongs to."""

import asyncio
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import numpy as np
import pytest
from command_line import soon
from fake_sessions import FakeCosts, FakeSession, digest

from fedglm.inference.batching.batcher import Batcher
from fedglm.inference.errors import BatcherClosedError, InferenceError, QueueFullError

POISON = 66


def ids(*tokens):
    return np.array([tokens])


def right(answer, *tokens):
    return np.array_equal(answer[0][0, -1], digest(tokens))


@pytest.fixture
def gate():
    """Holds runs until it is set."""
    gate = threading.Event()
    yield gate
    gate.set()


def next_token(logits):
    return int(logits[0]) % 60


def decode_alone(text, steps):
    text = list(text)
    for _ in range(steps):
        text.append(next_token(digest(text)))
    return text


def choose_times(steps, seen=None):
    """Chooses that many tokens, and notes them."""
    seen = [] if seen is None else seen

    def choose(logits):
        if len(seen) == steps:
            return None
        seen.append(next_token(logits))
        return seen[-1]

    return choose


@pytest.mark.parametrize("runs", [1, 3])
def test_many_threads_get_each_its_own_answer(runs):
    session = FakeSession(at_once=runs)
    with Batcher(session, FakeCosts(), max_runs=runs) as batcher:

        def generate(number):
            text = [number, *range(number % 7)]
            logits, cache = batcher.run(ids(*text))
            for _ in range(12):
                assert np.array_equal(logits[0, 0], digest(text))
                text.append(next_token(logits[0, 0]))
                logits, cache = batcher.run(ids(text[-1]), cache)
            return np.array_equal(logits[0, 0], digest(text)) and cache.length == len(text)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(generate, range(40)))
        counts = batcher.counts()
    assert counts.accepted == counts.answered == 40 * 13
    assert sum(size * runs for size, runs in counts.batches.items()) == 40 * 13
    assert (counts.waiting, counts.running, counts.failed, counts.cancelled) == (0, 0, 0, 0)


def test_texts_of_unequal_length_share_their_steps(gate):
    session = FakeSession(gate=gate)
    with Batcher(session, FakeCosts(each=0.01)) as batcher:
        first = batcher.submit(ids(1))
        assert session.started.wait(10)
        texts = [([number] * (number + 1), 3 * number + 1, []) for number in range(5)]
        futures = [batcher.decode(ids(*text), choose_times(steps, seen)) for text, steps, seen in texts]
        gate.set()
        for (text, steps, seen), future in zip(texts, futures, strict=True):
            assert right(future.result(10), *decode_alone(text, steps))
            assert [*text, *seen] == decode_alone(text, steps)
        assert right(first.result(10), 1)
    assert session.batches == [1, 5, 5, 4, 4, 4, 3, 3, 3, 2, 2, 2, 1, 1, 1]


def test_a_text_joins_those_under_way():
    session = FakeSession()
    with Batcher(session, FakeCosts()) as batcher:
        under_way, joined = threading.Event(), threading.Event()
        seen = []

        def choose(logits):
            if len(seen) == 2:
                under_way.set()
                assert joined.wait(10)
            seen.append(next_token(logits))
            return seen[-1] if len(seen) < 10 else None

        first = batcher.decode(ids(1, 2, 3), choose)
        assert under_way.wait(10)
        second = batcher.decode(ids(4), choose_times(3))
        joined.set()
        assert right(second.result(10), *decode_alone([4], 3))
        assert right(first.result(10), *decode_alone([1, 2, 3], 9))
    assert session.batches == [1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1]


def test_one_request_fails_and_the_others_do_not(gate):
    session = FakeSession(poison=POISON, gate=gate)
    with Batcher(session, FakeCosts()) as batcher:
        first = batcher.submit(ids(1))
        assert session.started.wait(10)
        futures = {token: batcher.submit(ids(token, token)) for token in (5, POISON, 7)}
        gate.set()
        assert right(futures[5].result(10), 5, 5)
        assert right(futures[7].result(10), 7, 7)
        assert right(first.result(10), 1)
        with pytest.raises(RuntimeError, match="token 66"):
            futures[POISON].result(10)
        assert right(batcher.run(ids(9)), 9)
        counts = batcher.counts()
    assert session.batches == [1, 3, 1, 1, 1, 1]
    assert (counts.answered, counts.failed, counts.repeated) == (4, 1, 1)


def test_a_request_that_does_not_fit_the_model_never_waits():
    with Batcher(FakeSession(), FakeCosts()) as batcher:
        with pytest.raises(InferenceError, match="tokens are 0 to 96"):
            batcher.submit(ids(97))
        with pytest.raises(InferenceError, match="one sequence"):
            batcher.run(np.array([[1], [2]]))
        with pytest.raises(InferenceError, match="pads them by itself"):
            batcher.run(ids(1, 2), mask=np.array([[False, True]]))
        assert right(batcher.run(ids(1, 2), mask=np.array([[True, True]])), 1, 2)


@pytest.mark.parametrize(
    ("choose", "error"),
    [(lambda _: 97, InferenceError), (lambda _: 1 / 0, ZeroDivisionError), (lambda _: 3, InferenceError)],
    ids=["no such token", "raises", "fills the model"],
)
def test_a_text_that_goes_wrong_ends_alone(choose, error):
    with Batcher(FakeSession(), FakeCosts()) as batcher:
        wrong, good = batcher.decode(ids(1), choose), batcher.decode(ids(2), choose_times(5))
        with pytest.raises(error):
            wrong.result(10)
        assert right(good.result(10), *decode_alone([2], 5))


def test_as_many_run_at_once_as_may_and_the_others_share_a_run(gate):
    session = FakeSession(gate=gate, at_once=2)
    with Batcher(session, FakeCosts(), max_runs=2) as batcher, ThreadPoolExecutor(6) as pool:
        first = [pool.submit(batcher.run, ids(number)) for number in range(2)]
        assert all(session.entered.acquire(timeout=10) for _ in first), "both run, and neither waits for the other"
        others = [pool.submit(batcher.run, ids(number)) for number in range(2, 6)]
        assert soon(lambda: batcher.counts().waiting == 4)
        assert batcher.counts().running == 2
        gate.set()
        assert all(right(one.result(10), number) for number, one in enumerate(first + others))
    assert sorted(session.batches) == [1, 1, 4]


def test_closing_waits_for_the_runs_of_calling_threads(gate):
    session = FakeSession(gate=gate, at_once=2)
    batcher = Batcher(session, FakeCosts(), max_runs=2)
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(batcher.run, ids(number)) for number in range(2)]
        assert all(session.entered.acquire(timeout=10) for _ in running)
        closed = pool.submit(batcher.close)
        time.sleep(0.05)
        assert not closed.done()
        gate.set()
        closed.result(10)
        assert all(right(one.result(10), number) for number, one in enumerate(running))


def test_a_full_queue_refuses_and_takes_again_what_was_withdrawn(gate):
    session = FakeSession(gate=gate)
    with Batcher(session, FakeCosts(), max_waiting=2) as batcher:
        running = batcher.submit(ids(1))
        assert session.started.wait(10)
        waiting = [batcher.submit(ids(2)), batcher.submit(ids(3))]
        with pytest.raises(QueueFullError, match="2 requests are waiting, which is the limit"):
            batcher.submit(ids(4))
        assert waiting[0].cancel()
        last = batcher.submit(ids(5))
        counts = batcher.counts()
        gate.set()
        assert right(running.result(10), 1)
        assert right(last.result(10), 5)
        assert right(waiting[1].result(10), 3)
    assert (counts.waiting, counts.running, counts.refused, counts.cancelled) == (2, 1, 1, 1)
    assert sorted(session.batches) == [1, 2]


def test_a_text_is_stopped_by_cancelling_it():
    session = FakeSession()
    with Batcher(session, FakeCosts()) as batcher:
        begun = threading.Event()

        def choose(_):
            begun.set()
            time.sleep(0.001)
            return 1

        future = batcher.decode(ids(1), choose)
        assert begun.wait(10)
        assert future.cancel()
        assert right(batcher.run(ids(5)), 5)
    assert len(session.batches) < 60  # it did not go on until the model was full
    assert batcher.counts().cancelled == 1


def test_closing_answers_what_was_accepted(gate):
    session = FakeSession(gate=gate)
    batcher = Batcher(session, FakeCosts())
    futures = [batcher.submit(ids(1)), batcher.decode(ids(2), choose_times(4)), batcher.submit(ids(3, 3))]
    assert session.started.wait(10)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    time.sleep(0.02)
    with pytest.raises(BatcherClosedError, match="closed"):
        batcher.submit(ids(4))
    with pytest.raises(BatcherClosedError, match="closed"):
        batcher.run(ids(4))
    gate.set()
    closing.join(10)
    assert not closing.is_alive()
    assert all(future.done() for future in futures)
    assert right(futures[1].result(), *decode_alone([2], 4))
    assert batcher.counts().answered == 3
    batcher.close()


def test_closing_without_draining_drops_what_waits_and_says_so(gate):
    session = FakeSession(gate=gate)
    batcher = Batcher(session, FakeCosts())
    running = batcher.submit(ids(1))
    assert session.started.wait(10)
    waiting = [batcher.submit(ids(2)), batcher.decode(ids(3), choose_times(5))]
    closing = threading.Thread(target=batcher.close, kwargs={"drain": False})
    closing.start()
    time.sleep(0.02)
    gate.set()
    closing.join(10)
    assert right(running.result(10), 1)
    for future in waiting:
        with pytest.raises(BatcherClosedError, match="before it served"):
            future.result(10)
    assert session.batches == [1]
    assert batcher.counts().failed == 2


def test_a_lone_caller_runs_in_its_own_thread():
    class Where(FakeSession):
        def read(self, *arguments):
            self.threads = getattr(self, "threads", set()) | {threading.current_thread()}
            return super().read(*arguments)

    session = Where()
    with Batcher(session, FakeCosts()) as batcher:
        for token in range(5):
            assert right(batcher.run(ids(token)), token)
    assert session.threads == {threading.current_thread()}


def test_an_interrupted_run_leaves_the_batcher_usable():
    class Interrupted(FakeSession):
        def read(self, tokens, *rest):
            if tokens[0, 0] == POISON:
                raise KeyboardInterrupt
            return super().read(tokens, *rest)

    with Batcher(Interrupted(), FakeCosts()) as batcher:
        with pytest.raises(KeyboardInterrupt):
            batcher.run(ids(POISON))
        assert right(batcher.run(ids(1)), 1)
        assert batcher.counts().failed == 1


def test_it_serves_asyncio():
    async def ask(batcher, token):
        return await asyncio.wrap_future(batcher.submit(ids(token)))

    async def ask_all(batcher):
        return await asyncio.gather(*[ask(batcher, token) for token in range(20)])

    async def give_up(batcher):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(batcher.decode(ids(1), lambda _: time.sleep(0.002) or 1)), 0.02)

    with Batcher(FakeSession(), FakeCosts()) as batcher:
        assert all(right(answer, token) for token, answer in enumerate(asyncio.run(ask_all(batcher))))
        asyncio.run(give_up(batcher))
    assert batcher.counts().cancelled == 1


def test_nothing_is_lost_when_all_happens_at_once():
    # Senders, withdrawals and errors in twelve threads; each request ends in exactly one way.
    session = FakeSession(poison=POISON)
    futures, refused = [], []

    def send(seed):
        rng = np.random.default_rng(seed)
        for _ in range(60):
            tokens = rng.integers(0, 97, rng.integers(1, 5))
            try:
                if rng.random() < 0.3:
                    future = batcher.decode(ids(*tokens), choose_times(int(rng.integers(0, 4))))
                else:
                    future = batcher.submit(ids(*tokens))
            except QueueFullError:
                refused.append(1)
                continue
            if rng.random() < 0.2:
                future.cancel()
            futures.append((tokens, future))

    batcher = Batcher(session, FakeCosts(), max_waiting=40)
    with batcher, ThreadPoolExecutor(12) as pool:
        wait([pool.submit(send, seed) for seed in range(12)])
    counts = batcher.counts()
    assert counts.accepted == len(futures) == counts.answered + counts.failed + counts.cancelled
    assert counts.refused == len(refused)
    for tokens, future in futures:
        assert future.done()
        try:
            future.result()
        except CancelledError:
            continue
        except RuntimeError:
            assert POISON in tokens
        else:
            assert POISON not in tokens


@pytest.mark.parametrize(
    "limits", [{"deadline_ms": -1}, {"deadline_ms": float("nan")}, {"max_batch": 0}, {"max_waiting": 0}]
)
def test_limits_must_be_possible(limits):
    with pytest.raises(InferenceError, match="at least one request"):
        Batcher(FakeSession(), FakeCosts(), **limits)


def test_a_latency_table_that_fails_ends_the_batcher_and_leaves_nobody_waiting():
    class Broken:
        def milliseconds(self, _batch, _tokens):
            raise OSError("no such table")

    batcher = Batcher(FakeSession(), Broken())
    future = batcher.submit(ids(1))
    with pytest.raises(BatcherClosedError, match="no such table"):
        future.result(10)
    batcher.close()
    with pytest.raises(BatcherClosedError, match="open another"):
        batcher.submit(ids(1))


def test_it_tells_the_limits_of_its_session():
    with Batcher(FakeSession(), FakeCosts()) as batcher:
        assert (batcher.outputs, batcher.max_length, batcher.vocab_size) == (3, 64, 97)
