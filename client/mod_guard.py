"""The outbound gate of somebody else's Flower app: what its replies may hold, by the site's own policy.

The app trains as it likes, so nothing here can say that there is noise in its updates: a policy must permit updates
without. The ledger remembers each of them, and promises nothing for these data from then on.
"""

import hashlib
from pathlib import Path

from flwr.app import Message
from flwr.common.serde import recorddict_to_proto

from fedglm.privacy.custody import Custody
from fedglm.privacy.custody_log import Leaving
from fedglm.privacy.errors import Refusal
from fedglm.privacy.policy_rules import MESSAGE_RULES, check_message, check_plain_update
from fedglm.privacy.policy_rules import Message as Outgoing

NO_PLAN = hashlib.sha256(b"").hexdigest()
"""What the ledger shows as the plan where a run has none."""


class ModGuard:
    """Holds what leaves beside `compress_uplink` to a site's policy.

    Args:
        folder: The site's custody folder.
        codec: Name of the codec of the updates.

    Raises:
        PolicyError, LedgerError: The folder holds no signed policy or no ledger.
    """

    def __init__(self, folder: Path, codec: str) -> None:
        self._custody = Custody.open(folder, (), unit="record")
        self._codec = codec

    def check_update(self, reply: Message, layout: str, blob: bytes, run: str, server_round: int) -> None:
        """Refuse the reply to a training message, or charge the ledger for it.

        Args:
            reply: As it would leave, its arrays coded.
            layout: SHA-256 of the layout of what was coded.
            blob: The coded update in it.
            run: Identity of the run.
            server_round: Number of the round.

        Raises:
            Refusal: It breaks a rule of the policy; the refusal is written down, and nothing may leave.
        """
        custody = self._custody
        with custody.logged(run, server_round):
            check_plain_update(layout, self._codec, custody.policy)
            self._check_rest(reply)
        charge = custody.charge_of(run, server_round, None, NO_PLAN, hashlib.sha256(blob).hexdigest(), purpose="update")
        custody.pay(Leaving(charge, len(blob), None, self._codec, [rule.name for rule in MESSAGE_RULES]))

    def check_measures(self, reply: Message) -> None:
        """Refuse a reply to any other message that holds more than metrics which the policy lists.

        Raises:
            Refusal: As above.
        """
        with self._custody.logged("", 0):
            if reply.content.array_records:
                raise Refusal("records", "the reply holds arrays, and only a reply to training may")
            self._check_rest(reply)

    def _check_rest(self, reply: Message) -> None:
        """What is in a reply beside arrays."""
        if texts := ", ".join(sorted(reply.content.config_records)):
            raise Refusal("records", f"the reply holds texts or settings ({texts[:100]}); arrays and metrics may leave")
        metrics = frozenset(_kind(name) for record in reply.content.metric_records.values() for name in record)
        check_message(Outgoing(recorddict_to_proto(reply.content).ByteSize(), metrics), self._custody.policy)


def _kind(name: str) -> str:
    """Which of the policy's metrics somebody's own metric is: Flower's apps name them as they like."""
    if name == "num-examples":
        return "count"
    return "loss" if name.endswith("loss") else "metric"
