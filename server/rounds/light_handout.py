"""The hand-out of light releases: each site that takes part gets the project's newest, and says what it holds then.

    server                                                       site
      | -- LightOffer -----------------------------------------> |
      | <-- LightReply: the release that it holds, or none ------ |
      | -- LightOffer + the release, or a delta from that one --> |   verifies, validates and keeps it
      | <-- LightReply: the release that it holds now ------------ |

Between rounds the newest release is offered again to sites that were away, joined later, or whose reply was lost,
whichever run it is of. Nothing that a site does here ends the run.
"""

import logging
from collections import Counter
from typing import Final

from flwr.app import ConfigRecord, Message, RecordDict

from fedglm.autoglm.light.run_release.outcome import LightOutcome
from fedglm.compression.codec import CodecError
from fedglm.core.errors import FedglmError
from fedglm.inference.errors import InferenceError
from fedglm.inference.release.manifest import hash_to_hex
from fedglm.inference.release.trust import Trust
from fedglm.inference.validation.validation import read_validation
from fedglm.privacy.errors import PrivacyError
from fedglm.protocol.messages import MAX_RELEASE_BYTES, RECORD, RELEASE, LightOffer, LightReply
from fedglm.protocol.signatures import check_light_reply
from fedglm.server.rounds.exchange import Exchange
from fedglm.server.rounds.participants import Participant, Participants
from fedglm.server.rounds.server_log import ServerLog
from fedglm.server.run_setup import KeptRelease, LightReleaseStore, Plan

LOG = logging.getLogger(__name__)

LIGHT = "query.light"
"""Flower message type of the offers."""

_PATIENCE_S: Final = 120.0
"""Seconds to wait for the sites: one that validates a release, for up to a minute, is slower than one that signs."""

_GRACE_S: Final = 60.0
"""Seconds to wait for the others once half have replied."""

_MAX_TRIES: Final = 3
"""Offers of a release to a site in a run that may end without a reply: each may delay the run by `_PATIENCE_S`."""


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
        self._newest = store.find_newest()
        self._held: dict[str, LightReply] = {}
        self._tries = Counter[str]()
        self._settled: set[str] = set()

    def keep(self, outcome: LightOutcome) -> None:
        """Keep a new release of the run, which is offered from now on; where there is none, the one before is."""
        if outcome.manifest is None or outcome.version is None:
            return
        newest, before = KeptRelease(version=outcome.version, manifest=outcome.manifest), self._newest
        if before is not None and newest != before and newest.version <= before.version:
            LOG.error("light release %d is not handed out: sites were offered %d", newest.version, before.version)
            return
        try:
            self._store.keep(newest)
        except FedglmError:
            LOG.exception("light release %d cannot be handed out", newest.version)
            return
        self._newest = newest
        self._held = {name: held for name, held in self._held.items() if not held.unfit}
        self._tries.clear()
        self._settled.clear()

    def offer(self, participants: Participants, server_round: int) -> None:
        """Offer the newest release to all who are not known to hold it.

        A site that takes part and is not absent is offered it once in any case, then while it is connected, until it
        has replied or has not three times.

        Args:
            participants: Nodes of the run.
            server_round: Number of the last finished round.

        Raises:
            Stopped: The stop event was set.
            LogError: The server's log cannot be written.
        """
        newest = self._newest
        lacking = [m for m in participants.joined if m.name not in self._settled and self._tries[m.name] < _MAX_TRIES]
        if newest is None or not lacking:
            return
        online = self._exchange.get_online()
        members = [m for m in lacking if m.node_id in online or not (self._tries[m.name] or m.is_absent)]
        self._tries.update(member.name for member in members)
        question = _make_content(LightOffer(run=self._run), None)
        self._send([(member, question) for member in members if member.name not in self._held], newest, server_round)
        by_delta = self._send_release(members, newest, server_round, whole=False)
        # A delta may be refused: by a site whose release was lost or damaged since it said that it holds it.
        self._send_release(by_delta, newest, server_round, whole=True)
        for member in members:
            self._conclude(member, newest)
        self._server_log.flush()

    def _send_release(
        self, members: list[Participant], newest: KeptRelease, server_round: int, *, whole: bool
    ) -> list[Participant]:
        """Send the release to those who said that they lack it, as a delta where that is shorter.

        Args:
            members: Sites.
            newest: The release.
            server_round: Number of the last finished round.
            whole: Whether it is sent whole to all.

        Returns:
            Those who were sent a delta.
        """
        packed: dict[str, tuple[RecordDict, bool] | None] = {}
        contents, by_delta = [], []
        for member in members:
            held = self._held.get(member.name)
            if held is None or not _lacks(held, newest):
                continue
            base = "" if whole else held.manifest
            if base not in packed:
                packed[base] = self._pack(newest, base)
            if (made := packed[base]) is not None:
                contents.append((member, made[0]))
                by_delta += [member] if made[1] else []
        self._send(contents, newest, server_round)
        return by_delta

    def _pack(self, newest: KeptRelease, base: str) -> tuple[RecordDict, bool] | None:
        """Return the offer for a site that holds `base`, and whether it is a delta; None where there is none."""
        try:
            blob, made_from = self._store.pack(newest.manifest, base)
        except InferenceError:
            LOG.exception("light release %d cannot be packed", newest.version)
            return None
        if len(blob) > MAX_RELEASE_BYTES:
            LOG.error("the light release has %d bytes, at most %d are handed out", len(blob), MAX_RELEASE_BYTES)
            return None
        return _make_content(LightOffer(run=self._run, base=made_from), blob), made_from is not None

    def _send(self, contents: list[tuple[Participant, RecordDict]], newest: KeptRelease, server_round: int) -> None:
        """Send an offer to each; what those hold who do not reply is not known any more."""
        by_id = {member.node_id: member for member, _ in contents}
        for member, _ in contents:
            self._held.pop(member.name, None)
        pairs = ((member.node_id, content) for member, content in contents if member.node_id is not None)
        self._exchange.send(pairs, LIGHT, server_round)
        grace_s = min(_GRACE_S, self._plan.federation.grace_s)
        for node_id, reply in self._exchange.replies(_PATIENCE_S, grace_s, message_type=LIGHT):
            replying = by_id.get(node_id)
            if replying is not None and (held := self._read(replying, reply)) is not None:
                self._held[replying.name] = held
                self._keep_validation(replying, held, newest)
        self._exchange.cancel(LIGHT)

    def _read(self, member: Participant, reply: Message) -> LightReply | None:
        """Read a reply; None for one that is none, or is not signed by its site."""
        try:
            fields = dict(reply.content.config_records[RECORD])
            held = LightReply.from_fields(fields)
            if self._plan.sites is not None:
                check_light_reply(self._plan.sites[member.name], fields, self._plan_sha256)
        except (CodecError, KeyError, PrivacyError, ValueError) as exc:
            LOG.warning("%s says nothing of light releases: %s", member.name, type(exc).__name__)
            return None
        return held

    def _keep_validation(self, member: Participant, held: LightReply, newest: KeptRelease) -> None:
        """Keep what a site says of the newest release; only what it signed itself, and of no other release."""
        if held.validation is None:
            return
        blob, sites = held.validation.encode(), self._plan.sites
        try:
            trust = Trust.unverified() if sites is None else Trust.in_keys([sites[member.name]])
            of = read_validation(blob, trust=trust).validation.manifest_sha256
            if of is not None and hash_to_hex(of) == newest.manifest:
                self._store.record_validation(member.name, newest.version, blob)
        except FedglmError as exc:
            LOG.warning("no validation of %s is kept: %s", member.name, exc)

    def _conclude(self, member: Participant, newest: KeptRelease) -> None:
        """Record that a site holds the release, or say why it does not."""
        held = self._held.get(member.name)
        if held is None:
            LOG.warning("%s has not said whether it holds light release %d", member.name, newest.version)
            return
        if held.manifest == newest.manifest:
            self._server_log.record_handed(member.name, newest.version, newest.manifest)
        else:
            reason = held.fault or f"it holds release {held.version}"
            LOG.warning("%s does not hold light release %d: %s", member.name, newest.version, reason)
        if not _lacks(held, newest):
            self._settled.add(member.name)


def _lacks(held: LightReply, newest: KeptRelease) -> bool:
    """Return whether a site that holds that may take the release."""
    if held.version == newest.version:
        return not held.manifest  # damaged
    return held.version < newest.version and not held.unfit


def _make_content(offer: LightOffer, blob: bytes | None) -> RecordDict:
    release = {} if blob is None else {RELEASE: blob}
    return RecordDict({RECORD: ConfigRecord({**offer.to_fields(), **release})})
