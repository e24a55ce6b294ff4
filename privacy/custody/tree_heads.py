"""Tree heads that a site and its servers exchange during a run, and countersign for each other."""

from typing import Any, Final

from fedglm.privacy.errors import Refusal
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.log.signed_log import Entry
from fedglm.privacy.log.tree_head import MAX_WITNESSED_HEADS, SignedTreeHead
from fedglm.privacy.policy.run_plan import SignedPlan

MAX_IDLE_HEADS: Final = 10
"""Maximum number of tree heads of a run under whose plan nothing has left: a server may have many such plans."""


class ExchangedHeads:
    """The tree heads in the entries of a site's log, and the checks for adding others."""

    def __init__(self) -> None:
        self._keys: list[PublicKey] = []
        self._witnessed: dict[str, tuple[str, set[int]]] = {}
        self._countersigned: set[tuple[int, str]] = set()

    def update(self, entry: Entry) -> None:
        """Update the state with an entry of the log; other kinds of entries have no tree heads."""
        kind = entry["kind"]
        if kind in ("opened", "key"):
            self._keys.append(PublicKey.from_hex(entry["key"]))
        elif kind == "witnessed":
            self._witnessed.setdefault(entry["run"], (entry["log"], set()))[1].add(entry["size"])
        elif kind == "countersigned":
            self._countersigned.add((entry["size"], entry["by"]))

    def verify(
        self,
        origin: str,
        signed: SignedPlan,
        theirs: SignedTreeHead,
        ours: tuple[SignedTreeHead, str] | None,
        *,
        idle: bool,
    ) -> list[tuple[str, dict[str, Any]]]:
        """Verify a server's tree head and countersignature, and make the log entries for what is new in them.

        Args:
            origin: Origin of the site's log.
            signed: The pinned plan of the run.
            theirs: Tree head of the server's log of the run.
            ours: A tree head of the site's log, and the server's countersignature (hex); None where it has seen none.
            idle: Whether nothing has left under the plan.

        Returns:
            Kind and fields of each new entry.

        Raises:
            Refusal: Rule `seal`: a signature is wrong, a tree head is of another log, or there were too many.
        """
        run, server = signed.plan.run, signed.server
        if not theirs.is_by(server):
            raise Refusal("seal", "the server's checkpoint is not signed by the key that signed the plan")
        log, seen = self._witnessed.get(run, (theirs.log, set()))
        if log != theirs.log:
            raise Refusal("seal", "the server's log of this run is another than before")
        entries: list[tuple[str, dict[str, Any]]] = []
        if ours is not None:
            own, countersignature = ours
            known = own.log == origin and any(own.is_by(key) for key in self._keys)
            if not known or not own.is_countersigned(server, countersignature):
                raise Refusal("seal", "what the server countersigned is no checkpoint of this log")
            # Logged only with a new tree head, for this entry itself leads to another tree head to countersign.
            if theirs.size not in seen and (own.size, server.hex) not in self._countersigned:
                by = {"by": server.hex, "countersignature": countersignature}
                entries.append(("countersigned", {**own.to_fields(), **by}))
        if theirs.size not in seen:
            limit = MAX_IDLE_HEADS if idle else MAX_WITNESSED_HEADS
            if len(seen) >= limit:
                raise Refusal("seal", f"more than {limit} checkpoints of one run")
            log_fields = {"run": run, "log": theirs.log, "name": "server", "key": server.hex}
            entries.append(("witnessed", {**log_fields, **theirs.to_fields()}))
        return entries
