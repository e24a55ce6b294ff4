"""The ClientApp of deployed sites, in the process of Flower's SuperNode.

With torch that process would be large and slow to start. Therefore it does not import torch: it passes the message to
the site's worker (`client/supernode/worker.py`), which keeps running, and starts one where there is none. All code is
the code that the site's operator installed.
"""

import logging
import threading
import time
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

from fedglm.client.no_answer import make_no_answer
from fedglm.client.site.settings import SiteError, SiteSection, read_site_file
from fedglm.client.supernode.one_answer import make_single_handler_app
from fedglm.client.supernode.worker_link import WorkerError, WorkerReply, WorkerRequest, ask

LOG = logging.getLogger(__name__)

_ONE_AT_A_TIME = threading.Lock()

SITE = "site"
"""Key of the SuperNode's node configuration that holds the path of the site's folder."""


def _handle_message(message: Message, context: Context) -> Message:
    folder = context.node_config.get(SITE)
    if not folder:
        reason = "the node does not know its site: start it with fedglm client start"
        return Message(Error(int(ErrorCode.MOD_FAILED_PRECONDITION), reason), reply_to=message)
    content = recorddict_to_proto(message.content).SerializeToString()
    request = WorkerRequest(message.metadata.message_type, message.metadata.group_id, content)
    # One at a time: the time of a reply that had waited for another's would reveal how long that one took.
    with _ONE_AT_A_TIME:
        start = time.monotonic()
        try:
            reply = ask(Path(str(folder)), request)
        except (WorkerError, SiteError) as exc:  # the cause of a worker's death may depend on records too
            LOG.error("no answer: %s", exc)
            reply = None
        finally:
            wait_for_interval(start, _read_interval(Path(str(folder))))
    # Not before, because a message contains the time when it was made, in microseconds.
    return make_no_answer(message) if reply is None else _make_reply(reply, message)


def wait_for_interval(start: float, interval_s: float) -> None:
    """Wait until a whole multiple of the reply interval has passed.

    Args:
        start: When the message came, in seconds of the monotonic clock.
        interval_s: Reply interval in seconds; 0 does not wait.
    """
    if interval_s > 0:
        time.sleep(interval_s - (time.monotonic() - start) % interval_s)


def _read_interval(folder: Path) -> float:
    try:
        return read_site_file(folder).site.answer_every_s
    except SiteError:
        return SiteSection().answer_every_s


def _make_reply(reply: WorkerReply, message: Message) -> Message:
    if reply.error is not None:
        code, reason = reply.error
        return Message(Error(code, reason), reply_to=message)
    return Message(recorddict_from_proto(RecordDictProto.FromString(reply.content)), reply_to=message)


app = make_single_handler_app(_handle_message)
