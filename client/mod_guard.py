"""The outbound gate for a user's own Flower app: the site's policy decides what its replies may hold.

The app trains with its own code, so nothing here can confirm that its updates or metrics are noised: the policy must
permit updates without noise. The ledger records each reply, and guarantees nothing for these data from then on. An app
that has received a message has had access to the records: any later failure, in the app or here, becomes `Withheld`.
"""

import contextlib
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from flwr.app import Message
from flwr.common.serde import recorddict_to_proto

from fedglm.client.no_answer import Withheld
from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.custody.site_log import Release
from fedglm.privacy.custody.store import Custody
from fedglm.privacy.errors import PrivacyError, Refusal
from fedglm.privacy.ledger.charges import Charge
from fedglm.privacy.policy.rules import (
    MESSAGE_RULES,
    OutboundMessage,
    check_message,
    check_plain_update,
    check_without_noise,
)
from fedglm.protocol.messages import RECORD

NO_PLAN = hashlib.sha256(b"").hexdigest()
"""Hash of the plan in the ledger for a run that has none."""

MakeReply = Callable[[], Message]
"""Function that has the app reply to a message."""

_NO_RUN = "-"
_NAME: Final = re.compile(r"[A-Za-z0-9_./-]{1,64}")


class ModGuard:
    """Checks the replies of an app with `compress_uplink` against a site's policy, and charges for them.

    Args:
        folder: The site's custody folder.
        codec: Name of the codec of the updates.

    Raises:
        PolicyError, LedgerError: The folder holds no signed policy or no ledger.
    """

    def __init__(self, folder: Path, codec: str) -> None:
        self._custody = Custody.open(folder, tuple, unit="record")
        self._codec = codec

    def authorize_update(self, layout: str, run: str, server_round: int) -> None:
        """Check a request for an update against the policy, before the app receives it.

        Args:
            layout: SHA-256 (hex) of the layout of the arrays to code.
            run: Identity of the run.
            server_round: Number of the round.

        Raises:
            Refusal: The policy permits no such update; the refusal is logged.
        """
        with self._custody.log_refusals(run, server_round):
            check_plain_update(layout, self._codec, self._custody.policy)

    def release_update(self, message: Message, make_reply: MakeReply, run: str, server_round: int) -> Message:
        """Return the app's reply to a training message, once the ledger is charged for it.

        Args:
            message: The message that it replies to.
            make_reply: Has the app reply, and codes its arrays.
            run: Identity of the run.
            server_round: Number of the round.

        Raises:
            Withheld: The app failed, its reply breaks a rule, or it could not be charged for; nothing may leave.
        """

        def read_content(reply: Message) -> bytes:
            (record,) = reply.content.array_records.values()
            return record[RECORD].data

        return self._release("update", message, make_reply, read_content, run, server_round)

    def release_metrics(self, message: Message, make_reply: MakeReply) -> Message:
        """Return the app's reply to any other message, once the ledger is charged for it: metrics in the policy alone.

        Args:
            message: The message that it replies to.
            make_reply: Has the app reply.

        Raises:
            Refusal: The policy permits nothing without noise; the app has not received the message.
            Withheld: As `release_update`.
        """
        with self._custody.log_refusals(_NO_RUN, 0):
            check_without_noise(self._custody.policy)

        def read_content(reply: Message) -> bytes:
            if reply.content.array_records:
                raise Refusal("records", "the reply holds arrays, and only a reply to training may")
            return canonical_json({name: dict(record) for name, record in sorted(reply.content.metric_records.items())})

        return self._release("metrics", message, make_reply, read_content, _NO_RUN, 0)

    def _release(
        self,
        purpose: str,
        message: Message,
        make_reply: MakeReply,
        read_content: Callable[[Message], bytes],
        run: str,
        server_round: int,
    ) -> Message:
        custody, codec = self._custody, self._codec if purpose == "update" else None
        try:
            reply = make_reply()
            if not isinstance(reply, Message):
                raise TypeError(f"the app answers with no message, but with {type(reply).__name__}")
            if reply.has_error():
                raise RuntimeError(f"the app answers with error {reply.error.code}: {reply.error.reason}")
            with custody.log_refusals(run, server_round):
                self._check_reply(reply)
                content = read_content(reply)
            charge = self._make_charge(purpose, run, server_round, content)
            custody.charge(Release(charge, len(content), None, codec, [rule.name for rule in MESSAGE_RULES]))
        except BaseException as exc:
            with contextlib.suppress(PrivacyError):  # that nothing leaves reveals something of the data, without noise
                custody.charge_failed(self._make_charge(purpose, run, server_round, b""))
            if not isinstance(exc, Exception | SystemExit):
                raise  # the process ends
            raise Withheld from exc
        return Message(reply.content, reply_to=message)  # the metadata of the app's own message could carry more

    def _make_charge(self, purpose: str, run: str, server_round: int, content: bytes) -> Charge:
        release = hashlib.sha256(content).hexdigest()
        return self._custody.make_charge(run, server_round, None, NO_PLAN, release, purpose=purpose)

    def _check_reply(self, reply: Message) -> None:
        """Check the records of a reply, except the content of its arrays, against the policy."""
        if texts := ", ".join(sorted(reply.content.config_records)):
            raise Refusal("records", f"the reply holds texts or settings ({texts[:100]}); arrays and metrics may leave")
        records = reply.content.metric_records.values()
        if any(isinstance(value, list) for record in records for value in record.values()):
            raise Refusal("records", "the reply holds lists of numbers; a metric is one")
        names = [*reply.content, *(name for record in records for name in record)]
        if not all(_NAME.fullmatch(name) for name in names):
            raise Refusal(
                "records", "a name in the reply is no word of up to 64 letters, digits, '_', '.', '/' and '-'"
            )
        metrics = frozenset(_classify_metric(name) for record in records for name in record)
        size = recorddict_to_proto(reply.content).ByteSize()
        check_message(OutboundMessage(size, metrics), self._custody.policy)


def _classify_metric(name: str) -> str:
    """Return the policy's metric that an app's metric belongs to; Flower apps choose the names freely."""
    if name == "num-examples":
        return "count"
    return "loss" if name.endswith("loss") else "metric"
