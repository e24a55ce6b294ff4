"""The hand-out of a light release: each site that takes part gets what it lacks, and says what it holds then.

    server                                                       site
      | -- LightOffer -----------------------------------------> |
      | <-- LightReply: the release that it holds, or none ------ |
      | -- LightOffer + the release, or a delta from that one --> |   verifies, tries and keeps it
      | <-- LightReply: the release that it holds now ------------ |

A site that does not reply gets the next release; nothing that a site does here ends the run.
"""

import json
import logging

from flwr.app import ConfigRecord, Message, RecordDict

from fedglm.autoglm.light.run_release.outcome import LightOutcome
from fedglm.compression.codec import CodecError
from fedglm.core.errors import FedglmError
from fedglm.inference.errors import InferenceError
from fedglm.privacy.errors import PrivacyError
from fedglm.protocol.messages import MAX_RELEASE_BYTES, RECORD, RELEASE, LightOffer, LightReply
from fedglm.protocol.signatures import check_light_reply
from fedglm.server.rounds.exchange import Exchange
from fedglm.server.rounds.participants import Participant, Participants
from fedglm.server.rounds.server_log import ServerLog
from fedglm.server.run_setup import LightReleaseStore, Plan

LOG = logging.getLogger(__name__)

LIGHT = "query.light"
"""Flower message type of the offers."""

_PATIENCE_S = 120.0
"""Seconds to wait for the sites: one that tries a model before it replies is slower than one that signs."""


class LightHandout:
    """Hands light releases out to all sites that take part.

    Args:
        exchange: Exchange with the nodes.
        plan: Plan of the run.
        run: Identity of the run.
        server_log: Log of the server.
        store: Keeps and packs the releases.
    """

    def __init__(
        self, exchange: Exchange, plan: Plan, run: str, server_log: ServerLog, store: LightReleaseStore
    ) -> None:
        self._exchange, self._plan, self._run, self._server_log = exchange, plan, run, server_log
        self._store = store
        self._plan_sha256 = plan.sign(run).plan.sha256
        self._held: dict[str, LightReply] = {}
        self._had_delta: set[str] = set()

    def hand_out(self, participants: Participants, outcome: LightOutcome) -> None:
        """Hand a release out; sites without a valid reply are left out.

        Args:
            participants: Nodes of the run.
            outcome: The release; nothing is handed out where there is none.

        Raises:
            Stopped: The stop event was set.
            LogError: The server's log cannot be written.
        """
        if outcome.manifest is None or outcome.version is None:
            return
        try:
            self._store.keep(outcome.manifest)
        except FedglmError:
            LOG.exception("the light release cannot be handed out")
            return
        members = [member for member in participants.active if member.node_id]
        question = _make_content(LightOffer(run=self._run), None)
        self._send([(member, question) for member in members if member.name not in self._held], outcome)
        known = [member for member in members if member.name in self._held]
        self._send_release(known, outcome.manifest, outcome, whole=False)
        # A delta may be refused: by a site whose release was lost or damaged since it said that it holds it.
        self._send_release(known, outcome.manifest, outcome, whole=True)
        for member in known:
            held = self._held[member.name]
            if held.manifest == outcome.manifest:
                self._server_log.record_handed(member.name, outcome.version, outcome.manifest)
            elif held.fault is not None:
                LOG.warning("%s holds no light release of version %d: %s", member.name, outcome.version, held.fault)
        self._server_log.flush()

    def _send_release(self, members: list[Participant], manifest: str, outcome: LightOutcome, *, whole: bool) -> None:
        """Send a release to those who lack it: a delta where that is shorter, or the whole to those who had a delta."""
        packed: dict[str, tuple[RecordDict, bool]] = {}
        contents = []
        for member in members:
            held = self._held[member.name].manifest
            if held == manifest or (whole and member.name not in self._had_delta):
                continue
            base = "" if whole else held
            if base not in packed and (made := self._pack(manifest, base)) is not None:
                packed[base] = made
            if base in packed:
                content, is_delta = packed[base]
                contents.append((member, content))
                (self._had_delta.add if is_delta else self._had_delta.discard)(member.name)
        self._send(contents, outcome)

    def _pack(self, manifest: str, base: str) -> tuple[RecordDict, bool] | None:
        try:
            blob, from_base = self._store.pack(manifest, base)
        except InferenceError:
            LOG.exception("the light release cannot be packed")
            return None
        if len(blob) > MAX_RELEASE_BYTES:
            LOG.error("the light release has %d bytes, at most %d are handed out", len(blob), MAX_RELEASE_BYTES)
            return None
        return _make_content(LightOffer(run=self._run, base=from_base), blob), from_base is not None

    def _send(self, contents: list[tuple[Participant, RecordDict]], outcome: LightOutcome) -> None:
        """Send an offer to each, and keep what they say that they hold."""
        by_id = {member.node_id: member for member, _ in contents if member.node_id}
        pairs = ((member.node_id, content) for member, content in contents if member.node_id)
        self._exchange.send(pairs, LIGHT, outcome.round)
        for node_id, reply in self._exchange.replies(_PATIENCE_S, self._plan.federation.grace_s):
            member = by_id.get(node_id)
            if member is not None and (held := self._read(member, reply)) is not None:
                self._held[member.name] = held
                if held.validation is not None and outcome.version is not None:
                    self._store.record_validation(member.name, outcome.version, json.loads(held.validation))
        self._exchange.cancel(LIGHT)

    def _read(self, member: Participant, reply: Message) -> LightReply | None:
        """Read a reply; None for one that is none, or is not signed by its site."""
        try:
            fields = dict(reply.content.config_records[RECORD])
            held = LightReply.from_fields(fields)
            if held.validation is not None and not isinstance(json.loads(held.validation), dict):
                raise ValueError("a validation is an object")
            if self._plan.sites is not None:
                check_light_reply(self._plan.sites[member.name], fields, self._plan_sha256)
        except (CodecError, KeyError, PrivacyError, RecursionError, ValueError) as exc:
            LOG.warning("%s says nothing of light releases: %s", member.name, type(exc).__name__)
            return None
        return held


def _make_content(offer: LightOffer, blob: bytes | None) -> RecordDict:
    release = {} if blob is None else {RELEASE: blob}
    return RecordDict({RECORD: ConfigRecord({**offer.to_fields(), **release})})
