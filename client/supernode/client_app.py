"""The ClientApp of real sites, in the process of Flower's SuperNode.

With torch that process would be slow to start and large. So this part does without: it hands the message to the site's
worker (`client/supernode/worker.py`), which stays, and starts one where there is none. All code is what the site's
operator installed.
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
from fedglm.client.supernode.one_answer import app_of
from fedglm.client.supernode.worker_link import Answer, Question, WorkerError, ask

LOG = logging.getLogger(__name__)

_ALONE = threading.Lock()

SITE = "site"
"""Key of the SuperNode's node configuration that holds the path of the site's folder."""


def _answer(message: Message, context: Context) -> Message:
    folder = context.node_config.get(SITE)
    if not folder:
        reason = "the node does not know its site: start it with fedglm client start"
        return Message(Error(int(ErrorCode.MOD_FAILED_PRECONDITION), reason), reply_to=message)
    content = recorddict_to_proto(message.content).SerializeToString()
    question = Question(message.metadata.message_type, message.metadata.group_id, content)
    # One at a time: an answer that had waited for another's would tell, at a cadence of its own, how long that took.
    with _ALONE:
        began = time.monotonic()
        try:
            answer = ask(Path(str(folder)), question)
        except (WorkerError, SiteError) as exc:  # also what a worker dies of may follow from records
            LOG.error("no answer: %s", exc)
            answer = None
        finally:
            hold(began, _answer_every(Path(str(folder))))
    # Only now, for a message says in microseconds when it was made.
    return make_no_answer(message) if answer is None else _reply(answer, message)


def hold(began: float, every_s: float) -> None:
    """Wait until a whole multiple of `every_s` seconds has passed since `began`, by the monotonic clock."""
    if every_s > 0:
        time.sleep(every_s - (time.monotonic() - began) % every_s)


def _answer_every(folder: Path) -> float:
    try:
        return read_site_file(folder).site.answer_every_s
    except SiteError:
        return SiteSection().answer_every_s


def _reply(answer: Answer, message: Message) -> Message:
    if answer.error is not None:
        code, reason = answer.error
        return Message(Error(code, reason), reply_to=message)
    return Message(recorddict_from_proto(RecordDictProto.FromString(answer.content)), reply_to=message)


app = app_of(_answer)
