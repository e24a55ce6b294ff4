"""The outbound gate of somebody else's Flower app: what its replies may hold, by the site's own policy.

The app trains as it likes, so nothing here can say that there is noise in its updates or measures: a policy must permit
updates without. The ledger remembers each reply, and promises nothing for these data from then on. An app that has seen
a message has seen the data: whatever goes wrong from there on, in the app or here, is `Withheld`.
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
from fedglm.privacy.policy.rules import MESSAGE_RULES, check_message, check_plain_update, check_without_noise
from fedglm.privacy.policy.rules import OutboundMessage as Outgoing
from fedglm.protocol.messages import RECORD

NO_PLAN = hashlib.sha256(b"").hexdigest()
"""What the ledger shows as the plan where a run has none."""

Answer = Callable[[], Message]
_NO_RUN = "-"
_NAME: Final = re.compile(r"[A-Za-z0-9_./-]{1,64}")


class ModGuard:
    """Holds what leaves beside `compress_uplink` to a site's policy.

    Args:
        folder: The site's custody folder.
        codec: Name of the codec of the updates.

    Raises:
        PolicyError, LedgerError: The folder holds no signed policy or no ledger.
    """

    def __init__(self, folder: Path, codec: str) -> None:
        self._custody = Custody.open(folder, tuple, unit="record")
        self._codec = codec

    def permit_update(self, layout: str, run: str, server_round: int) -> None:
        """Hold a request for an update to the policy, before the app sees it.

        Args:
            layout: SHA-256 of the layout of what would be coded.
            run: Identity of the run.
            server_round: Number of the round.

        Raises:
            Refusal: The policy permits no such update; the refusal is written down.
        """
        with self._custody.log_refusals(run, server_round):
            check_plain_update(layout, self._codec, self._custody.policy)

    def release_update(self, message: Message, answer: Answer, run: str, server_round: int) -> Message:
        """The app's reply to a training message, once the ledger is charged for it.

        Args:
            message: What it replies to.
            answer: Has the app answer, and codes its arrays.
            run: Identity of the run.
            server_round: Number of the round.

        Raises:
            Withheld: The app failed, its reply breaks a rule, or it could not be charged for; nothing may leave.
        """

        def content(reply: Message) -> bytes:
            (record,) = reply.content.array_records.values()
            return record[RECORD].data

        return self._release("update", message, answer, content, run, server_round)

    def release_measures(self, message: Message, answer: Answer) -> Message:
        """The app's reply to any other message: metrics which the policy lists, once they are charged for.

        Args:
            message: What it replies to.
            answer: Has the app answer.

        Raises:
            Refusal: The policy permits nothing without noise; the app has not seen the message.
            Withheld: As `release_update`.
        """
        with self._custody.log_refusals(_NO_RUN, 0):
            check_without_noise(self._custody.policy)

        def content(reply: Message) -> bytes:
            if reply.content.array_records:
                raise Refusal("records", "the reply holds arrays, and only a reply to training may")
            return canonical_json({name: dict(record) for name, record in sorted(reply.content.metric_records.items())})

        return self._release("metrics", message, answer, content, _NO_RUN, 0)

    def _release(
        self,
        purpose: str,
        message: Message,
        answer: Answer,
        content: Callable[[Message], bytes],
        run: str,
        server_round: int,
    ) -> Message:
        custody, codec = self._custody, self._codec if purpose == "update" else None
        try:
            reply = answer()
            if not isinstance(reply, Message):
                raise TypeError(f"the app answers with no message, but with {type(reply).__name__}")
            if reply.has_error():
                raise RuntimeError(f"the app answers with error {reply.error.code}: {reply.error.reason}")
            with custody.log_refusals(run, server_round):
                self._check(reply)
                leaves = content(reply)
            charge = self._charge(purpose, run, server_round, leaves)
            custody.charge(Release(charge, len(leaves), None, codec, [rule.name for rule in MESSAGE_RULES]))
        except BaseException as exc:
            with contextlib.suppress(PrivacyError):  # that nothing leaves says something of the data, without noise
                custody.charge_failed(self._charge(purpose, run, server_round, b""))
            if not isinstance(exc, Exception | SystemExit):
                raise  # the process ends
            raise Withheld from exc
        return Message(reply.content, reply_to=message)  # the app's own could say more in its metadata

    def _charge(self, purpose: str, run: str, server_round: int, content: bytes) -> Charge:
        release = hashlib.sha256(content).hexdigest()
        return self._custody.make_charge(run, server_round, None, NO_PLAN, release, purpose=purpose)

    def _check(self, reply: Message) -> None:
        """What is in a reply beside arrays."""
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
        metrics = frozenset(_kind(name) for record in records for name in record)
        check_message(Outgoing(recorddict_to_proto(reply.content).ByteSize(), metrics), self._custody.policy)


def _kind(name: str) -> str:
    """Which of the policy's metrics somebody's own metric is: Flower's apps name them as they like."""
    if name == "num-examples":
        return "count"
    return "loss" if name.endswith("loss") else "metric"
