"""Starts and watches the process of each run, within the SuperLink; it replaces Flower's SuperExec.

A SuperExec is one more process, which nothing supervises: once it is dead, runs wait for ever. And Flower counts a
run's process as alive until it has sent no heartbeat for a minute. Here the end of a process is noticed at once.
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, Final

from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse
from flwr.proto.task_pb2 import Task
from flwr.supercore.constant import TaskType
from flwr.supercore.servicer.runtime.runtime_handlers import acquire_task
from sqlalchemy.exc import OperationalError

from fedglm.core.processes.parent_process import child_env

_POLL_S: Final = 0.5

_log = logging.getLogger("uvicorn.error")


class AppLauncher:
    """Starts the processes of runs while the SuperLink runs.

    Args:
        state: Returns Flower's LinkState, such as `linkstate_factory.state`.
    """

    def __init__(self, state: Callable[[], Any]) -> None:
        self._state = state
        self._running: dict[asyncio.Task[None], asyncio.subprocess.Process] = {}

    async def run(self) -> None:
        """Start the processes of submitted runs until cancelled; any exception is a bug."""
        while True:
            try:
                acquired = await asyncio.to_thread(self._acquire)
            except OperationalError as exc:  # the database is busy, or its disk full
                _log.error("no run can be started now: %s", exc.orig)
                acquired = AcquireTaskResponse()
            if acquired.token:
                await self._start(acquired.task, acquired.token)
            else:
                await asyncio.sleep(_POLL_S)

    def stop(self) -> None:
        """Kill the processes; their runs resume from their checkpoints when they are submitted again."""
        for watch, process in self._running.items():
            watch.cancel()  # the next SuperLink stops the runs of this one, and reports it
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def _acquire(self) -> AcquireTaskResponse:
        return acquire_task(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]), self._state())

    async def _start(self, task: Task, token: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fedglm.server.superlink.app_process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,  # the process sends its output to Flower's log of the run
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, **child_env()},
        )
        _log.info("run %d is process %d", task.run_id, process.pid)
        with contextlib.suppress(OSError):  # the process has ended already
            assert process.stdin is not None  # noqa: S101 - a pipe, as requested
            process.stdin.write(f"{token}\n".encode())
            await process.stdin.drain()
            process.stdin.close()
        watch = asyncio.create_task(self._watch(task, process))
        self._running[watch] = process
        watch.add_done_callback(self._running.pop)

    async def _watch(self, task: Task, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        details = f"its process ended by signal {-code}" if code < 0 else f"its process ended with exit code {code}"
        while True:
            try:
                is_unreported = await asyncio.to_thread(self._finish, task.task_id, details)
            except OperationalError:
                await asyncio.sleep(_POLL_S)
                continue
            break
        if is_unreported:
            _log.error("run %d: %s, and did not report how", task.run_id, details)

    def _finish(self, task_id: int, details: str) -> bool:
        """Mark a task as failed and return True, unless its process has reported how it ended."""
        return bool(self._state().finish_task(task_id, sub_status=SubStatus.FAILED, details=details))
