"""Entries of the server in the signed log of a run: plan, sites, each accepted update, each published model.

Entries are buffered until `flush`, and then written at once: those of a round after it, before its checkpoint. Of a
round in which the server was killed nothing is written; it is repeated.
"""

import hashlib
from pathlib import Path
from typing import Any

from flwr.app import Message

from fedglm.autoglm.light.run_release.outcome import LightOutcome
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.signed_log import SignedLog
from fedglm.privacy.log.tree_head import SignedTreeHead
from fedglm.privacy.policy.run_plan import SignedPlan
from fedglm.run_folder.rows import to_json
from fedglm.server.rounds.participants import Participant, read_refused_reply
from fedglm.server.run_setup import Row


class ServerLog:
    """The server's signed log of a run.

    Args:
        path: Path of the log, which is created if it does not exist; None keeps no log.
        key: Signing key of the server.
        run: Identity of the run.

    Attributes:
        log: The signed log; None where none is kept.

    Raises:
        LogError: The log is damaged, or not signed by this server.
    """

    def __init__(self, path: Path | None, key: SigningKey, run: str) -> None:
        self._key, self._run = key, run
        self._entries: list[tuple[str, dict[str, Any]]] = []
        if path is not None and not path.exists():
            SignedLog.create(path, key, role="server", name="server")
        self.log = None if path is None else SignedLog(path, key)

    def record_start(self, signed: SignedPlan, rounds: int) -> None:
        """Record that the run starts, or resumes after `rounds` rounds, and write it."""
        self._add("announced", run=self._run, plan=signed.plan.sha256, signed=signed.to_text())
        self._add("begun", run=self._run, round=rounds)
        self.flush()

    def record_admission(self, name: str, key: str | None, anchor: str | None) -> None:
        """Record that a site takes part.

        Args:
            name: Name of the site.
            key: Its public key (hex); None where sites do not sign.
            anchor: Last known state of its log, from this run or an earlier one; None where none is known.
        """
        known = {} if anchor is None else {"anchor": anchor}
        self._add("admitted", run=self._run, site=name, key=key, **known)

    def record_refusal(self, node_id: int, rule: str | None, site: str | None) -> None:
        """Record that a site's policy refuses the plan, by a rule (None where it names none).

        Args:
            node_id: Flower id of its node.
            rule: Name of the rule.
            site: Name of the site, where it is known.
        """
        known = {} if site is None else {"site": site}
        self._add("declined", run=self._run, rule=rule or "unnamed", node=node_id % 2**63, **known)

    def record_absent(self, server_round: int, site: str) -> None:
        """Record that a round got no update of a site because its node was not connected."""
        self._add("absent", run=self._run, round=server_round, site=site)

    def record_revoked(self, server_round: int, site: str) -> None:
        """Record that a site takes no further part because its keys were revoked."""
        self._add("revoked", run=self._run, round=server_round, site=site)

    def record_accepted(self, server_round: int, site: str, **fields: Any) -> None:
        """Record an aggregated update; the fields are those of `privacy.log.entries`."""
        self._add("accepted", run=self._run, round=server_round, site=site, **fields)

    def record_rejected(self, server_round: int, site: str, fault: str, rule: str | None = None) -> None:
        """Record that a site's update was not aggregated.

        Args:
            server_round: Number of the round.
            site: Name of the site.
            fault: Kind of fault, as in `privacy.log.entries`.
            rule: Name of the broken rule, where the site refused by one.
        """
        self._add("rejected", run=self._run, round=server_round, site=site, fault=fault, rule=rule)

    def record_round(self, row: Row, model_sha256: str) -> None:
        """Record a finished round and the hash (hex) of its model, and write all entries of the round."""
        counts = {"accepted": row["nodes_accepted"], "rejected": row["nodes_rejected"]}
        sizes = {name: row[name] for name in ("uplink_bytes", "downlink_bytes")}
        row_sha256 = hashlib.sha256(to_json(row).encode()).hexdigest()  # so that no row can be altered later
        self._add("published", run=self._run, round=row["round"], model=model_sha256, row=row_sha256, **counts, **sizes)
        self.flush()

    def record_light(self, outcome: LightOutcome) -> None:
        """Record a light release by the hash of its manifest, or that none was released, and write it."""
        released = outcome.manifest is not None
        fields = {
            "version": outcome.version,
            "manifest": outcome.manifest,
            "bytes": outcome.bytes if released else None,
        }
        self._add("light", run=self._run, round=outcome.round, **fields)
        self.flush()

    def record_handed(self, site: str, version: int, manifest: str) -> None:
        """Record that a site says it holds a light release, by version and SHA-256 (hex) of the manifest."""
        self._add("handed", run=self._run, site=site, version=version, manifest=manifest)

    def record_given(self, site: str, model: str, manifest: str) -> None:
        """Record that a site says it holds the final model, by SHA-256 (hex) of the model and of its manifest."""
        self._add("given", run=self._run, site=site, model=model, manifest=manifest)

    def record_end(self, rounds: int, model_sha256: str) -> None:
        """Record that the run is finished, and write it."""
        self._add("finished", run=self._run, rounds=rounds, model=model_sha256)
        self.flush()

    def countersign(self, theirs: SignedTreeHead) -> str:
        """Return the server's countersignature (hex) of a site's signed tree head."""
        return theirs.countersign(self._key)

    def record_seal(
        self, member: Participant, key: str, theirs: SignedTreeHead, ours: SignedTreeHead, countersignature: str
    ) -> None:
        """Record the signed tree head of a site, and its countersignature of this log's.

        Args:
            member: Site.
            key: Its public key (hex).
            theirs: Signed tree head of its log.
            ours: Signed tree head of this log.
            countersignature: Countersignature of `ours` by the site (hex).
        """
        self._add("witnessed", run=self._run, name=member.name, key=key, log=theirs.log, **theirs.to_fields())
        self._add("countersigned", by=key, countersignature=countersignature, **ours.to_fields())

    def flush(self) -> None:
        """Write all buffered entries at once.

        Raises:
            LogError: The entries could not be written.
        """
        if self.log is not None:
            with self.log.writing() as put:
                for kind, fields in self._entries:
                    put(kind, fields)
        self._entries = []

    def _add(self, kind: str, **fields: Any) -> None:
        self._entries.append((kind, fields))


def classify_fault(reply: Message) -> tuple[str, str | None]:
    """Return the kind of fault of a reply that is no valid update, and the broken rule where it is a refusal."""
    if (refused := read_refused_reply(reply)) is not None:
        return "refused", refused.rule
    return ("failed" if reply.has_error() else "malformed"), None
