"""The hand-out of the model that a run ends with: each site that takes part keeps it, and says so.

    server                                                      site
      | -- ModelOffer, the signed manifest, what it lacks ------> |   rebuilds the model, checks the hash, keeps it
      | <-- ModelReply: the model that it holds now ------------- |

What a site lacks is a message of the versioned downlink, as in a round. Nothing that a site does here ends the run.
"""

import logging
from typing import Final

from flwr.app import ConfigRecord, Message, RecordDict

from fedglm.compression.codec import CodecError
from fedglm.compression.downlink import ModelVersions
from fedglm.privacy.errors import PrivacyError
from fedglm.protocol.messages import MODEL, RECORD, ModelOffer, ModelReply
from fedglm.protocol.model_manifest import ModelManifest, hash_text
from fedglm.protocol.signatures import check_model_reply
from fedglm.server.rounds.exchange import Exchange
from fedglm.server.rounds.participants import Participant, Participants
from fedglm.server.rounds.server_log import ServerLog
from fedglm.server.run_setup import Plan, Row

LOG = logging.getLogger(__name__)

QUERY: Final = "query.model"
"""Flower message type of the offers."""

_PATIENCE_S: Final = 120.0
"""Seconds to wait for the sites, which write the model to their disks."""

_GRACE_S: Final = 30.0
"""Seconds to wait for the others once half have replied."""

_TRIES: Final = 3
"""Offers to a site: the second starts from the version that it says it holds, the third is a snapshot."""


class ModelHandout:
    """Hands the final model out to all sites that take part.

    Args:
        exchange: Exchange with the nodes.
        plan: Plan of the run.
        run: Identity of the run.
        server_log: Log of the server.
        versions: Published model and its deltas.
    """

    def __init__(
        self, exchange: Exchange, plan: Plan, run: str, server_log: ServerLog, versions: ModelVersions
    ) -> None:
        self._exchange, self._plan, self._run = exchange, plan, run
        self._server_log, self._versions = server_log, versions
        self._plan_sha256 = plan.sign(run).plan.sha256

    def offer(self, participants: Participants, rows: list[Row]) -> None:
        """Offer the model to all who joined, until each has replied or was asked three times.

        Args:
            participants: Nodes of the run.
            rows: Rows of the rounds.

        Raises:
            Stopped: The stop event was set.
            LogError: The server's log cannot be written.
        """
        text = make_manifest(self._plan, self._run, rows, self._versions.sha256).sign(self._plan.key)
        starts: dict[str, int | None] = {member.name: member.version for member in participants.joined}
        for tried in range(_TRIES):
            online = self._exchange.get_online()
            members = [m for m in participants.joined if m.name in starts and (not tried or m.node_id in online)]
            if not members:
                break
            for member, held in self._send(members, starts, text, len(rows)):
                if held.model == self._versions.sha256:
                    self._server_log.record_given(member.name, held.model, hash_text(text))
                    del starts[member.name]
                elif held.fault is not None:
                    LOG.warning("%s does not hold the model: %s", member.name, held.fault)
                    del starts[member.name]
                else:
                    starts[member.name] = held.holds if tried == 0 else None
        for name in sorted(starts):
            LOG.warning("%s has not said that it holds the model", name)
        self._server_log.flush()

    def _send(
        self, members: list[Participant], starts: dict[str, int | None], text: str, server_round: int
    ) -> list[tuple[Participant, ModelReply]]:
        """Send an offer to each, and return the valid replies."""
        by_id = {member.node_id: member for member in members if member.node_id is not None}
        offer = ModelOffer(run=self._run, manifest=text).to_fields()
        pairs = (
            (
                node_id,
                RecordDict({RECORD: ConfigRecord({**offer, MODEL: self._versions.message_since(starts[member.name])})}),
            )
            for node_id, member in by_id.items()
        )
        self._exchange.send(pairs, QUERY, server_round)
        replies, grace_s = [], min(_GRACE_S, self._plan.federation.grace_s)
        for node_id, reply in self._exchange.replies(_PATIENCE_S, grace_s, message_type=QUERY):
            member = by_id.get(node_id)
            if member is not None and (held := self._read(member, reply)) is not None:
                replies.append((member, held))
        self._exchange.cancel(QUERY)
        return replies

    def _read(self, member: Participant, reply: Message) -> ModelReply | None:
        """Read a reply; None for one that is none, or is not signed by its site."""
        try:
            fields = dict(reply.content.config_records[RECORD])
            held = ModelReply.from_fields(fields)
            if self._plan.sites is not None:
                check_model_reply(self._plan.sites[member.name], fields, self._plan_sha256)
        except (CodecError, KeyError, PrivacyError, ValueError) as exc:
            LOG.warning("%s says nothing of the model: %s", member.name, type(exc).__name__)
            return None
        return held


def make_manifest(plan: Plan, run: str, rows: list[Row], model_sha256: str) -> ModelManifest:
    """Make the manifest of a run's final model.

    Args:
        plan: Plan of the run.
        run: Identity of the run.
        rows: Rows of the rounds, at least one.
        model_sha256: SHA-256 (hex) of the model.
    """
    last, guarantee = rows[-1], plan.guarantee
    return ModelManifest(
        run=run,
        name=plan.checkpoints.parent.name or run,
        rounds=len(rows),
        model_sha256=model_sha256,
        layout=plan.layout.sha256,
        parameters=plan.layout.size,
        loss=last["loss"],
        metric=plan.metric,
        value=last[plan.metric],
        epsilon=None if guarantee is None else guarantee[0],
        delta=None if guarantee is None else guarantee[1],
    )
