"""Takes the messages that the SuperNode has received to the site's ClientApp, and its answers back.

Flower would start two more processes for this: one that waits, and one for each message, which unpacks and loads the
app that the server sent. Threads of the SuperNode do it over the same interface. It saves the processes, their time
and their memory, and nothing that the server sent is ever unpacked: the app is the installed one.
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
from fedglm.client.supernode.replies import Work

LOG = logging.getLogger(__name__)

_NAME: Final = "fedglm"
_ACQUIRE: Final = frozenset({"/flwr.proto.Runtime/AcquireTask"})
_POLL_S: Final = 0.25
_PATIENCE_S: Final = 60.0


def start_executor(app: ClientApp, address: str, secret: bytes, work: Work) -> threading.Thread:
    """Answer messages in a thread for as long as the process lives; if the thread fails, the process ends too.

    Args:
        app: What answers.
        address: Path of the socket where the SuperNode serves its apps.
        secret: What lets this process alone take messages there.
        work: Is told of each message that is being answered.
    """

    def run() -> None:
        try:
            _answer_for_ever(app, address, secret, work)
        except BaseException:
            LOG.exception("the node ends, for it can no longer take its messages")
            os._exit(1)  # whoever watches over the node starts it again

    thread = threading.Thread(target=run, name="fedglm-executor", daemon=True)
    thread.start()
    return thread


def _answer_for_ever(app: ClientApp, address: str, secret: bytes, work: Work) -> None:
    asking = _client(address, SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE))
    answered = time.monotonic()
    while True:
        try:
            found = asking.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.HTTPError:  # it listens a moment after this thread starts
            if time.monotonic() - answered > _PATIENCE_S:
                raise
            time.sleep(_POLL_S)
            continue
        answered = time.monotonic()
        if found.HasField("task") and found.token:
            # In a thread, for a message whose parts a dying SuperLink never sent is waited for, and others come.
            threading.Thread(target=_answer_one, args=(app, address, found.token, work), daemon=True).start()
        else:
            time.sleep(_POLL_S)


def _answer_one(app: ClientApp, address: str, token: str, work: Work) -> None:
    """Answer a message; whatever goes wrong with it, the node goes on with the next, and the server may ask again."""
    client = _client(address, RuntimeTokenHttpInterceptor(token))
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    context: Context | None = None
    status, details = SubStatus.FAILED, "the message could not be answered"
    try:
        heartbeat.start()
        message, context, _, _ = pull_task_input(client)
        with work.answering():
            push_message(client, _replied(app, message, context), context)
        status, details = SubStatus.COMPLETED, ""
    except Exception:
        LOG.exception("a message was not answered")
    finally:
        push_task_output(client, context, status, details)
        if heartbeat.is_running:
            heartbeat.stop()
        client.close()


def _replied(app: ClientApp, message: Message, context: Context) -> Message:
    try:
        return app(message, context)
    except Exception:
        LOG.exception("the app failed")  # whose words may quote records, and stay here
        return make_no_answer(message)


def _client(address: str, authentication: ProtobufClientInterceptor) -> RuntimeHttpClient:
    client = RuntimeHttpClient.from_server_address(
        server_address=_NAME,  # which nobody looks up: a socket has no host
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name=_NAME), authentication],
        retry_invoker=make_simple_http_retry_invoker(),
    )
    # Flower's client knows of no sockets but TCP's, and gives no other way to have it use one.
    client._client = httpx.Client(transport=httpx.HTTPTransport(uds=address), timeout=client._client.timeout)
    return client
