"""Executor of the SuperNode: passes received messages to the site's ClientApp, and returns its replies.

Flower would start two more processes for this: one that waits, and one for each message, which unpacks and loads the
app that the server sent. Here threads of the SuperNode use the same interface. This saves the processes, their time and
their memory, and nothing that the server sent is ever unpacked: the app is the installed one.
"""

import logging
import os
import threading
import time
from typing import Final

import httpx
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from fedglm.client.no_answer import make_no_answer
from fedglm.client.supernode.replies import WorkTracker

LOG = logging.getLogger(__name__)

_NAME: Final = "fedglm"
_ACQUIRE: Final = frozenset({"/flwr.proto.Runtime/AcquireTask"})
_POLL_S: Final = 0.25
_TIMEOUT_S: Final = 60.0


def start_executor(app: ClientApp, address: str, secret: bytes, work: WorkTracker) -> threading.Thread:
    """Start a thread that answers messages until the process ends; if the thread fails, it ends the process.

    Args:
        app: ClientApp that answers the messages.
        address: Path of the Unix socket on which the SuperNode serves its apps.
        secret: Secret that authenticates this process there, and no other.
        work: Tracks the messages that are being answered.

    Returns:
        The started thread.
    """

    def run() -> None:
        try:
            _handle_tasks(app, address, secret, work)
        except BaseException:
            LOG.exception("the node ends, for it can no longer take its messages")
            os._exit(1)  # the node's supervisor restarts it

    thread = threading.Thread(target=run, name="fedglm-executor", daemon=True)
    thread.start()
    return thread


def _handle_tasks(app: ClientApp, address: str, secret: bytes, work: WorkTracker) -> None:
    client = _make_client(address, SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE))
    last_response = time.monotonic()
    while True:
        try:
            response = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.HTTPError:  # the SuperNode begins to listen a moment after this thread starts
            if time.monotonic() - last_response > _TIMEOUT_S:
                raise
            time.sleep(_POLL_S)
            continue
        last_response = time.monotonic()
        if response.HasField("task") and response.token:
            # In a thread: it may wait for parts of a message that a dying SuperLink never sent, while others come.
            threading.Thread(target=_handle_task, args=(app, address, response.token, work), daemon=True).start()
        else:
            work.wait_for_message(_POLL_S)


def _handle_task(app: ClientApp, address: str, token: str, work: WorkTracker) -> None:
    """Answer one message; whatever fails, the node continues with the next, and the server may send it again."""
    client = _make_client(address, RuntimeTokenHttpInterceptor(token))
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    context: Context | None = None
    status, details = SubStatus.FAILED, "the message could not be answered"
    try:
        heartbeat.start()
        message, context, _, _ = pull_task_input(client)
        with work.track():
            push_message(client, _make_reply(app, message, context), context)
        status, details = SubStatus.COMPLETED, ""
    except Exception:
        LOG.exception("a message was not answered")
    finally:
        push_task_output(client, context, status, details)
        if heartbeat.is_running:
            heartbeat.stop()
        client.close()


def _make_reply(app: ClientApp, message: Message, context: Context) -> Message:
    try:
        return app(message, context)
    except Exception:
        LOG.exception("the app failed")  # the text may quote records, and stays here
        return make_no_answer(message)


def _make_client(address: str, authentication: ProtobufClientInterceptor) -> RuntimeHttpClient:
    client = RuntimeHttpClient.from_server_address(
        server_address=_NAME,  # never resolved: a Unix socket has no host
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name=_NAME), authentication],
        retry_invoker=make_simple_http_retry_invoker(),
    )
    # Flower's client supports TCP alone, and there is no other way to make it use a Unix socket.
    client._client = httpx.Client(transport=httpx.HTTPTransport(uds=address), timeout=client._client.timeout)
    return client
