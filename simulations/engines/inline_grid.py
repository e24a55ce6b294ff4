"""The engine `inline`: a Flower grid on this machine, without a SuperLink or Ray.

Each worker is a process that runs the same ClientApp as a deployment; messages are sent to it serialised as Flower's
protobuf. Workers are forked from a fork server that has imported torch once, so starting them is cheap and no lock of
this process is copied. They end with this process, however it ends.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess
from types import TracebackType
from typing import Self
from uuid import uuid4

from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import context_from_proto, context_to_proto, message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Context as ContextProto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedglm.core.processes.cores import count_cores
from fedglm.core.processes.worker_pool import hide_script

AppFactory = Callable[[], ClientApp]
"""Makes the ClientApp in a worker; it must be importable there (a function of a module, or a `partial` of one)."""

RUN_ID = 1
_PRELOAD = ["fedglm.simulations.engines.worker_imports"]


class InlineGrid(Grid):
    """A grid whose nodes run in worker processes of this machine.

    Args:
        app_factory: Makes the ClientApp; called once per worker.
        nodes: Number of nodes; node i + 1 has Flower's `partition-id` i.
        workers: Number of processes; by default one per core that this process may use.

    Use it as a context manager, which ends the workers at its exit.
    """

    def __init__(self, app_factory: AppFactory, nodes: int, workers: int | None = None) -> None:
        self._app_factory = app_factory
        self._workers = min(nodes, workers or count_cores())
        self._contexts = {i + 1: _make_context(i, nodes) for i in range(nodes)}
        self._queue: deque[Message] = deque()
        self._answered: dict[str, Message] = {}
        self._pool: list[_Worker] = []
        self._run = Run.create_empty(run_id=RUN_ID)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SUPERLINK_NODE_ID, 1

    def __enter__(self) -> Self:
        prepare_workers()
        self._pool = [_Worker(self._app_factory) for _ in range(self._workers)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._pool:
            worker.end(at_once=kind is not None)
        self._pool = []

    def set_run(self, run: Run) -> None:
        """Set Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message; Flower prefers the constructor of `Message`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids, 1 to n."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages for the workers; return their ids.

        Raises:
            ValueError: There is no such node.
        """
        ids = []
        for message in messages:
            if message.metadata.dst_node_id not in self._contexts:
                raise ValueError(f"there is no node {message.metadata.dst_node_id}")
            self._forget_other_rounds(message.metadata)
            message.metadata.__dict__["_message_id"] = str(uuid4())
            self._queue.append(message)
            ids.append(message.metadata.message_id)
        self._dispatch()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived; wait up to 20 ms for one."""
        wanted = set(message_ids)
        if not wanted & self._answered.keys():
            self._collect(timeout=0.02)
        return [self._answered.pop(message_id) for message_id in sorted(wanted & self._answered.keys())]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and wait for all replies, or until `timeout` seconds have passed."""
        waiting = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (end is None or time.monotonic() < end):
            arrived = list(self.pull_messages(waiting))
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
        return replies

    def _forget_other_rounds(self, new: Metadata) -> None:
        """Drop a node's queued messages, and all late replies, of rounds other than that of a new message."""
        stale = [m for m in self._queue if m.metadata.dst_node_id == new.dst_node_id]
        for message in stale:
            if message.metadata.group_id != new.group_id:
                self._queue.remove(message)
        for message_id, reply in list(self._answered.items()):
            if reply.metadata.group_id != new.group_id:
                del self._answered[message_id]

    def _dispatch(self) -> None:
        """Give queued messages to idle workers; a node works on one message at a time."""
        busy = {w.message.metadata.dst_node_id for w in self._pool if w.message is not None}
        for worker in self._pool:
            if worker.message is not None:
                continue
            ready = next((m for m in self._queue if m.metadata.dst_node_id not in busy), None)
            if ready is None:
                return
            self._queue.remove(ready)
            busy.add(ready.metadata.dst_node_id)
            worker.send(ready, self._contexts[ready.metadata.dst_node_id])

    def _collect(self, timeout: float) -> None:
        working = {worker.pipe: worker for worker in self._pool if worker.message is not None}
        for pipe in connection.wait(list(working), timeout):
            worker = next(w for p, w in working.items() if p is pipe)
            request = worker.message
            if request is None:
                continue
            try:
                reply, context = worker.receive()
                self._contexts[request.metadata.dst_node_id] = context
            except (EOFError, OSError):
                reason = f"the worker process died (exit code {worker.end(at_once=True)})"
                reply = Message(Error(code=int(ErrorCode.CLIENT_APP_CRASHED), reason=reason), reply_to=request)
                self._pool[self._pool.index(worker)] = _Worker(self._app_factory)
            self._answered[request.metadata.message_id] = reply
        self._dispatch()


class _Worker:
    """This process's end of one worker process."""

    def __init__(self, app_factory: AppFactory) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.message: Message | None = None
        context = multiprocessing.get_context("forkserver")
        self._process: ForkServerProcess = context.Process(target=_work, args=(theirs, app_factory), daemon=True)
        with _block_interrupt(), hide_script(app_factory):
            self._process.start()
        theirs.close()

    def send(self, message: Message, context: Context) -> None:
        self.message = message
        try:
            self.pipe.send_bytes(context_to_proto(context).SerializeToString())
            self.pipe.send_bytes(message_to_proto(message).SerializeToString())
        except OSError:
            pass  # the worker is dead, which `receive` reports

    def receive(self) -> tuple[Message, Context]:
        self.message = None
        context = context_from_proto(ContextProto.FromString(self.pipe.recv_bytes()))
        return message_from_proto(MessageProto.FromString(self.pipe.recv_bytes())), context

    def end(self, *, at_once: bool) -> int | None:
        self.pipe.close()
        if at_once:
            self._process.kill()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        return self._process.exitcode


def _work(pipe: "connection.Connection", app_factory: AppFactory) -> None:
    """Run a worker: read messages and write replies until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    TaskIdentity.run_id, TaskIdentity.task_id = RUN_ID, 1
    app = app_factory()
    while True:
        try:
            context = context_from_proto(ContextProto.FromString(pipe.recv_bytes()))
            message = message_from_proto(MessageProto.FromString(pipe.recv_bytes()))
        except (EOFError, OSError):
            return
        TaskIdentity.node_id = message.metadata.dst_node_id
        try:
            reply = app(message, context)
        except Exception as exc:
            reason = f"{type(exc).__name__}: {exc}"
            reply = Message(Error(code=int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), reason=reason), reply_to=message)
        pipe.send_bytes(context_to_proto(context).SerializeToString())
        pipe.send_bytes(message_to_proto(reply).SerializeToString())


def _die_with_parent() -> None:
    """End this worker as soon as its parent has ended, even in the middle of training."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def prepare_workers() -> None:
    """Start the fork server, if it does not run yet; it imports torch while this process does other things."""
    forkserver.set_forkserver_preload(_PRELOAD)
    resource_tracker.ensure_running()  # outside the block below, because it unblocks Ctrl-C once it runs
    with _block_interrupt():
        forkserver.ensure_running()


@contextmanager
def _block_interrupt() -> Iterator[None]:
    """Block Ctrl-C in processes that are started in the block: this process ends them itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _make_context(partition: int, partitions: int) -> Context:
    config: UserConfig = {"partition-id": partition, "num-partitions": partitions}
    return Context(run_id=RUN_ID, node_id=partition + 1, node_config=config, state=RecordDict(), run_config={})
