"""Dynamic batching: requests of many threads that share the runs of one session.

A `Batcher` is itself a `Session` of one sequence, so whatever generates or predicts through a session does so through a
batcher, a thread each, and their steps meet here. Each decoding step is a request of its own: a sequence joins the
others at any step and leaves them at any (continuous batching; iteration-level scheduling: Orca, Yu et al., OSDI 2022,
section 3.1). What shares a run, and how long it waits for more, `scheduler.py` decides from the latency table.

Who asks for a run may do it himself: where the session is idle and the batch is due, `run` takes place in the calling
thread, for handing it to another and back costs as much as a step of a small model. For the same reason a whole text
goes through `decode`, whose steps need no thread but the batcher's.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Self

import numpy as np
import numpy.typing as npt

from fedglm.inference.batching.costs import BatchCosts
from fedglm.inference.batching.counters import BatcherCounts
from fedglm.inference.batching.lockstep import LockStep
from fedglm.inference.batching.requests import Answer, Choose, Request, run_together
from fedglm.inference.batching.scheduler import Plan, Scheduler
from fedglm.inference.batching.sequence_cache import SequenceCache
from fedglm.inference.errors import BatcherClosedError, InferenceError, QueueFullError
from fedglm.inference.runtime.session import Cache, Session


class Batcher:
    """Runs what several threads ask of one session in batches; safe for threads, and for asyncio by `wrap_future`.

    A batch whose run fails is run again one by one, so that only those fail who fail alone. Close it, or use it as a
    context manager: until then its thread waits for requests.

    Args:
        session: The model; nobody else runs it.
        costs: Its latency by batch and tokens; a batch is formed only where this says that it pays.
        deadline_ms: How long a request waits at most for others while the session is idle, in ms.
        max_batch: Maximum number of sequences in a run.
        max_waiting: Maximum number of requests that wait; more are refused. Texts under way are not counted.
        max_runs: Maximum number of runs at a time. As long as no more clients ask than that, each runs for itself at
            once; more of them share one run at a time.

    Raises:
        InferenceError: A limit is not positive.
    """

    def __init__(
        self,
        session: Session,
        costs: BatchCosts,
        *,
        deadline_ms: float = 5.0,
        max_batch: int = 32,
        max_waiting: int = 256,
        max_runs: int = 1,
    ) -> None:
        if not deadline_ms >= 0 or min(max_batch, max_waiting, max_runs) < 1:
            raise InferenceError("a batcher has a deadline of 0 ms or more, and room for at least one request")
        self._session = session
        self._scheduler: Scheduler[Request] = Scheduler(costs, deadline_s=deadline_ms / 1000, max_batch=max_batch)
        self._max_waiting, self._max_runs = max_waiting, max_runs
        self._changed = threading.Condition(threading.Lock())  # guards all below; the worker alone waits on it
        self._waiting: list[Request] = []
        self._runs = self._running = 0  # runs under way, and the requests in them
        self._shares = False  # whether more ask than may run at a time
        self._closed = self._dropping = False
        self._counts: Counter[str] = Counter()
        self._batches: Counter[int] = Counter()
        self._worker = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._worker.start()

    @property
    def outputs(self) -> int:
        """Width of the output layer."""
        return self._session.outputs

    @property
    def max_length(self) -> int:
        """Maximum number of positions of a sequence."""
        return self._session.max_length

    @property
    def vocab_size(self) -> int:
        """Exclusive upper bound of token ids."""
        return self._session.vocab_size

    def run(
        self,
        ids: npt.NDArray[np.int64],
        cache: Cache | None = None,
        *,
        logits_at: npt.NDArray[np.int64] | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> Answer:
        """Run and wait for the answer; arguments, answer and errors as of `submit`.

        Args:
            ids: New tokens of one sequence, (1, S), int64.
            cache: The sequence so far.
            logits_at: Positions within S, (1, K), int64; None: the last.
            mask: All True, or None: the batcher pads by itself.

        Raises:
            InferenceError: The request does not fit the model.
            QueueFullError: As many as may wait are waiting.
            BatcherClosedError: The batcher is closed, or was before the run began.
        """
        if mask is not None and not mask.all():
            raise InferenceError("a batcher takes sequences without padding, and pads them by itself")
        with self._changed:
            alone = self._has_room and not (self._waiting or self._closed or self._scheduler.expects_others)
            self._runs += alone
            self._running += alone
        if alone:
            return self._run_alone(ids, cache, logits_at)
        request = Request(self._session, ids, cache, logits_at=logits_at, arrived=time.monotonic())
        batch: list[Request] = []
        with self._changed:
            self._accept(request)
            if self._has_room:
                plan = self._scheduler.plan(self._waiting)
                if plan.due <= request.arrived and request in plan.batch:
                    batch = self._take(plan)
                else:
                    self._changed.notify()
        if batch:
            self._serve(batch)
        try:
            return request.future.result()
        except BaseException:
            request.future.cancel()  # whoever was interrupted while waiting wants no answer any more
            raise

    def submit(
        self,
        ids: npt.NDArray[np.int64],
        cache: Cache | None = None,
        *,
        logits_at: npt.NDArray[np.int64] | None = None,
    ) -> Future[Answer]:
        """Ask for a run, and return its answer to come; cancelling that withdraws the request.

        Callbacks of the future run in the thread that ran the batch, and should be short.

        Args:
            ids: New tokens of one sequence, (1, S), int64.
            cache: The sequence so far, as an earlier run of this batcher (or, for one sequence, of its session)
                returned it.
            logits_at: Positions within S, (1, K), int64; None: the last.

        Returns:
            Future of the logits, (1, K, outputs), float32, and the cache.

        Raises:
            InferenceError: The request does not fit the model.
            QueueFullError: As many as may wait are waiting.
            BatcherClosedError: The batcher is closed; the future has it where closing dropped the request.
        """
        return self._submit(Request(self._session, ids, cache, logits_at=logits_at, arrived=time.monotonic()))

    def decode(self, ids: npt.NDArray[np.int64], choose: Choose, cache: Cache | None = None) -> Future[Answer]:
        """Read tokens and go on, token by token, as long as `choose` chooses one; cancelling the future stops it.

        Args:
            ids: New tokens of one sequence, (1, S), int64.
            choose: Takes the logits of the last token, (outputs,), float32, and returns the next token or None at the
                end. It is called in the thread that ran the batch, and should be short; what it raises ends this text
                alone.
            cache: The sequence so far.

        Returns:
            Future of the last logits, (1, 1, outputs), and the cache of all tokens.

        Raises:
            InferenceError: The request does not fit the model; the future has it where the text fills the model.
            QueueFullError: As many as may wait are waiting.
            BatcherClosedError: The batcher is closed; the future has it where closing dropped the request.
        """
        return self._submit(Request(self._session, ids, cache, choose=choose, arrived=time.monotonic()))

    def counts(self) -> BatcherCounts:
        """Return what has been done so far."""
        with self._changed:
            return BatcherCounts(
                waiting=len(self._waiting),
                running=self._running,
                accepted=self._counts["accepted"],
                answered=self._counts["answered"],
                failed=self._counts["failed"],
                cancelled=self._counts["cancelled"],
                refused=self._counts["refused"],
                repeated=self._counts["repeated"],
                batches=dict(sorted(self._batches.items())),
            )

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests, and return when nothing runs any more; not from a callback.

        Args:
            drain: Whether those accepted are still answered, texts to their end; otherwise those that do not run just
                now get a `BatcherClosedError`.
        """
        with self._changed:
            self._closed, self._dropping = True, not drain
            self._changed.notify()
        self._worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _has_room(self) -> bool:
        return self._runs < (1 if self._shares else self._max_runs)

    def _submit(self, request: Request) -> Future[Answer]:
        with self._changed:
            self._accept(request)
            if self._has_room:  # else whoever runs looks at the queue when done
                self._changed.notify()
        return request.future

    def _accept(self, request: Request) -> None:
        if self._closed:
            raise BatcherClosedError("the batcher is closed: open another")
        if len(self._waiting) >= self._max_waiting:
            self._drop_cancelled()
        if len(self._waiting) >= self._max_waiting:
            self._counts["refused"] += 1
            raise QueueFullError(f"{self._max_waiting} requests are waiting, which is the limit: ask again later")
        self._counts["accepted"] += 1
        self._waiting.append(request)

    def _drop_cancelled(self) -> None:
        kept = [request for request in self._waiting if not request.future.cancelled()]
        self._counts["cancelled"] += len(self._waiting) - len(kept)
        self._waiting = kept

    def _take(self, plan: Plan[Request]) -> list[Request]:
        """Take a planned batch out of the queue; the caller serves it."""
        batch = list(plan.batch)
        self._waiting = [request for request in self._waiting if request not in plan.batch]
        self._runs += 1
        self._running += len(batch)
        return batch

    def _work(self) -> None:
        end = BatcherClosedError("the batcher was closed before it served this request")
        try:
            while batch := self._next_batch():
                self._serve(batch)
        except Exception as exc:  # of the latency table: nothing can be planned any more, and nobody may wait for it
            end = BatcherClosedError(f"the batcher has ended, as its latency table failed: {exc!r}")
        with self._changed:
            self._closed = True
            left, self._waiting = self._waiting, []
        for request in left:
            self._deliver(request, end)

    def _next_batch(self) -> list[Request]:
        """Wait for a batch that is due; empty when the batcher is closed and nothing more is to run."""
        with self._changed:
            while True:
                wait_s = None
                self._drop_cancelled()
                if self._has_room:
                    ends = self._dropping or (self._closed and not self._waiting)
                    if ends and not self._runs:
                        return []
                    if self._waiting and not ends:
                        plan = self._scheduler.plan(self._waiting)
                        wait_s = plan.due - time.monotonic()
                        if wait_s <= 0 or self._closed:
                            return self._take(plan)
                self._changed.wait(wait_s)

    def _run_alone(
        self, ids: npt.NDArray[np.int64], cache: Cache | None, logits_at: npt.NDArray[np.int64] | None
    ) -> Answer:
        """Run for the calling thread alone: no future, and no check that the session makes as well."""
        kind = "failed"
        try:
            if len(ids) != 1:
                raise InferenceError(f"a request is one sequence, (1, S) int64, not {ids.shape} {ids.dtype}")
            past = cache.alone() if isinstance(cache, SequenceCache) else cache
            logits, grown = self._session.run(ids, past, logits_at=logits_at)
            kind = "answered"
        finally:
            with self._changed:
                self._counts["accepted"] += 1
                self._counts[kind] += 1
                self._batches[1] += 1
                self._finish(1, ended=1)
        return logits, SequenceCache(grown)

    def _finish(self, ran: int, *, ended: int) -> None:
        self._runs -= 1
        self._running -= ran
        clients = ended + self._running + len(self._waiting)
        self._shares = clients > self._max_runs
        self._scheduler.expect(clients if self._shares else 1)
        if self._waiting or self._closed:
            self._changed.notify()

    def _serve(self, batch: list[Request]) -> None:
        """Run a batch that was taken, deliver its answers or errors, and queue the next steps of its texts."""
        ended: list[tuple[Request, Answer | Exception]] = []
        going: list[Request] = []
        try:
            step = batch[0].group
            ended, going = self._step(batch)
            # The same texts would be planned for the same batch again; after their beginnings that is another question.
            while step == 1 and not (ended or self._waiting or self._closed):
                going = []  # until the steps are done: who is interrupted meanwhile has no next one
                ended, going = self._go_on(batch)
        finally:
            if len(ended) + len(going) < len(batch):  # Ctrl-C in the thread that called `run`
                ended = [(request, InferenceError("the run was interrupted: ask again")) for request in batch]
                going = []
            with self._changed:
                self._waiting += going
                self._finish(len(batch), ended=len(ended))
            for request, end in ended:
                self._deliver(request, end)

    def _go_on(self, batch: list[Request]) -> tuple[list[tuple[Request, Answer | Exception]], list[Request]]:
        """Run texts on together until one ends or somebody else waits; return as `_step` does."""
        together = LockStep(self._session, batch)
        ended: list[tuple[Request, Answer | Exception]] = []
        is_run = True
        while is_run and together.has_room and not (ended or self._waiting or self._closed):
            try:
                ended = together.step()
            except Exception:  # run again below, where each fails alone
                is_run = False
            else:
                with self._changed:
                    self._batches[len(batch)] += 1
        together.part(time.monotonic())
        if not is_run or not (ended or together.has_room):
            return self._step(batch)
        over = [request for request, _ in ended]
        return ended, [request for request in batch if request not in over]

    def _step(self, batch: list[Request]) -> tuple[list[tuple[Request, Answer | Exception]], list[Request]]:
        """Run a batch once; return what ended, with its end, and the texts that go on."""
        ended: list[tuple[Request, Answer | Exception]] = []
        going: list[Request] = []
        outcomes = self._run_batch(batch)
        now = time.monotonic()
        for request, outcome in zip(batch, outcomes, strict=True):
            try:
                if isinstance(outcome, Exception) or not request.proceed(self._session, outcome, now):
                    ended.append((request, outcome))
                else:
                    going.append(request)
            except Exception as exc:  # of whatever kind: it is the sender's, and this thread serves others too
                ended.append((request, exc))
        return ended, going

    def _run_batch(self, batch: list[Request]) -> Sequence[Answer | Exception]:
        with self._changed:
            self._batches[len(batch)] += 1
        try:
            return run_together(self._session, batch)
        except Exception as exc:
            if len(batch) == 1:
                return [exc]
        with self._changed:
            self._counts["repeated"] += 1
        return [outcome for request in batch for outcome in self._run_batch([request])]

    def _deliver(self, request: Request, end: Answer | Exception) -> None:
        wanted = request.future.set_running_or_notify_cancel()
        kind = "cancelled" if not wanted else "failed" if isinstance(end, Exception) else "answered"
        with self._changed:
            self._counts[kind] += 1
        if not wanted:
            return
        if isinstance(end, Exception):
            request.future.set_exception(end)
        else:
            request.future.set_result(end)
