"""What a server writes into the signed log of a run: plan, sites, each update that it took, each model that it made.

Notes are kept until `flush`, and then written at once: a round's when it is over, before its checkpoint. Of a round in
which the server was killed nothing is there; it is begun again.
"""

import hashlib
from pathlib import Path
from typing import Any

from flwr.app import Message

from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.signed_log import SignedLog
from fedglm.privacy.log.tree_head import SignedTreeHead
from fedglm.privacy.policy.run_plan import SignedPlan
from fedglm.run_folder.rows import to_json
from fedglm.server.rounds.participants import Participant, refusal_of
from fedglm.server.run_setup import Row


class ServerLog:
    """The log in the file at `path`, which is made if it is not there.

    Args:
        path: Of the file; None keeps nothing.
        key: The server's.
        run: Identity of the run.

    Attributes:
        log: None where nothing is kept.

    Raises:
        LogError: The log is damaged, or the server did not sign it.
    """

    def __init__(self, path: Path | None, key: SigningKey, run: str) -> None:
        self._key, self._run = key, run
        self._notes: list[tuple[str, dict[str, Any]]] = []
        if path is not None and not path.exists():
            SignedLog.create(path, key, role="server", name="server")
        self.log = None if path is None else SignedLog(path, key)

    def begun(self, signed: SignedPlan, rounds: int) -> None:
        """The run begins, or goes on after so many rounds."""
        self._note("announced", run=self._run, plan=signed.plan.sha256, signed=signed.to_text())
        self._note("begun", run=self._run, round=rounds)
        self.flush()

    def admitted(self, name: str, key: str | None, anchor: str | None) -> None:
        """A site takes part; its log stood at `anchor` when the server saw it last, in this run or an earlier one."""
        known = {} if anchor is None else {"anchor": anchor}
        self._note("admitted", run=self._run, site=name, key=key, **known)

    def declined(self, node_id: int, rule: str | None) -> None:
        """A site's policy refuses the plan, by that rule."""
        self._note("declined", run=self._run, rule=rule or "unnamed", node=node_id % 2**63)

    def accepted(self, server_round: int, site: str, **fields: Any) -> None:
        """An update was folded in; see `privacy.log.entries`."""
        self._note("accepted", run=self._run, round=server_round, site=site, **fields)

    def rejected(self, server_round: int, site: str, fault: str, rule: str | None = None) -> None:
        """An update was not folded in."""
        self._note("rejected", run=self._run, round=server_round, site=site, fault=fault, rule=rule)

    def published(self, row: Row, model_sha256: str) -> None:
        """A round is over, and there is a new model."""
        counts = {"accepted": row["nodes_accepted"], "rejected": row["nodes_rejected"]}
        sizes = {name: row[name] for name in ("uplink_bytes", "downlink_bytes")}
        line = hashlib.sha256(to_json(row).encode()).hexdigest()  # so that nobody puts in another loss
        self._note("published", run=self._run, round=row["round"], model=model_sha256, row=line, **counts, **sizes)
        self.flush()

    def finished(self, rounds: int, model_sha256: str) -> None:
        """The last round is over."""
        self._note("finished", run=self._run, rounds=rounds, model=model_sha256)
        self.flush()

    def countersign(self, other: SignedTreeHead) -> str:
        """The server's signature under a site's checkpoint (hex)."""
        return other.countersign(self._key)

    def sealed(
        self, member: Participant, key: str, theirs: SignedTreeHead, ours: SignedTreeHead, signature: str
    ) -> None:
        """A site has shown how its log stands, and countersigned how this one does."""
        self._note("witnessed", run=self._run, name=member.name, key=key, log=theirs.log, **theirs.to_fields())
        self._note("countersigned", by=key, countersignature=signature, **ours.to_fields())

    def flush(self) -> None:
        """Write all notes, in one go.

        Raises:
            LogError: They could not be written.
        """
        if self.log is not None:
            with self.log.writing() as put:
                for kind, fields in self._notes:
                    put(kind, fields)
        self._notes = []

    def _note(self, kind: str, **fields: Any) -> None:
        self._notes.append((kind, fields))


def fault_of(reply: Message) -> tuple[str, str | None]:
    """Why a reply is no update, where it is an error: the fault, and the rule that was broken."""
    if (refused := refusal_of(reply)) is not None:
        return "refused", refused.rule
    return ("failed" if reply.has_error() else "malformed"), None
