"""The server's book of its nodes: who they are, which model version each holds, which update was folded in last."""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from flwr.app import Message
from flwr.common.constant import ErrorCode

from fedglm.core.errors import FedglmError
from fedglm.core.untrusted_text import clean_text
from fedglm.protocol.refusals import RefusedReply, read_refusal
from fedglm.server.aggregation.fixed_point import compute_public_weights

LOST: Final = frozenset(
    int(code)
    for code in (
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
    )
)
"""Flower's errors that say nothing of the node's own work, but that a message or a process was lost."""


class FederationError(FedglmError, RuntimeError):
    """The federation cannot start or go on; the message says why and what would help."""


@dataclass
class Participant:
    """One node as the server knows it.

    Attributes:
        name: Given by the node, unique.
        node_id: Flower's, valid for this run of the runtime only; None while the node has not introduced itself.
        version: Model version that the node holds, None if it cannot be built upon; version 0 is the initialisation,
            which each node computes itself.
        acknowledged: Last round whose update was folded in, 0 for none.
        examples: Number of examples that it declares.
        weight: Public weight in the mean.
        anchor: Where its log, and with it its privacy ledger, stood in its last report; None where it reported none.
        withdrawn: Why it takes no further part: its budget is spent. Empty while it does.
    """

    name: str
    node_id: int | None = None
    version: int | None = 0
    acknowledged: int = 0
    examples: int = 0
    weight: float = 1.0
    anchor: str | None = None
    withdrawn: str = ""


class Participants:
    """All nodes of a run, by name.

    Args:
        members: In any order.
    """

    def __init__(self, members: list[Participant]) -> None:
        self._by_name = {member.name: member for member in sorted(members, key=lambda m: m.name)}
        self._by_id = {member.node_id: member for member in members if member.node_id is not None}

    @property
    def size(self) -> int:
        """How many there are, here or not."""
        return len(self._by_name)

    @property
    def active(self) -> list[Participant]:
        """Those that came and did not withdraw, by name."""
        return [member for member in self._by_name.values() if member.node_id is not None and not member.withdrawn]

    @property
    def pending(self) -> list[str]:
        """Names of those that have not introduced themselves and did not withdraw."""
        return [name for name, member in self._by_name.items() if member.node_id is None and not member.withdrawn]

    def of_node(self, node_id: int) -> Participant | None:
        """The participant behind a Flower node id; None where it has come back under another one since."""
        return self._by_id.get(node_id)

    def join(self, member: Participant) -> Participant:
        """Take up where a node is and what it holds, now that it has introduced itself, for the first time or again."""
        known = self._by_name[member.name]
        if known.node_id is not None:
            self._by_id.pop(known.node_id, None)
        known.node_id, known.version, known.examples = member.node_id, member.version, member.examples
        if known.node_id is not None:
            self._by_id[known.node_id] = known
        return known

    def weigh(self, cap: float) -> None:
        """Weigh all that have introduced themselves by what they declare: at least 1."""
        here = [member for member in self._by_name.values() if member.node_id is not None]
        weights = compute_public_weights({member.name: member.examples for member in here}, cap)
        for member in here:
            member.weight = weights[member.name]

    def sample(self, size: int, seed: int, server_round: int) -> list[Participant]:
        """`size` of the nodes that still take part, by name: the same for a seed, whatever ids the runtime gave."""
        active = self.active
        return [active[index] for index in drawn(len(active), size, seed, server_round)]

    def state(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint keeps: which residual may be committed, where the log stood, who withdrew."""
        return {
            name: {"acknowledged": member.acknowledged, "anchor": member.anchor, "withdrawn": member.withdrawn}
            for name, member in self._by_name.items()
        }

    def restore(self, state: dict[str, dict[str, Any]], *, strict: bool = True) -> None:
        """Take up a checkpoint's book.

        Args:
            state: What `state` gave.
            strict: The nodes must be the same; else sites may have been enrolled and revoked meanwhile.

        Raises:
            FederationError: The run was made with other nodes.
        """
        if strict and state and state.keys() != self._by_name.keys():
            odd = ", ".join(sorted(state.keys() ^ self._by_name.keys()))
            raise FederationError(f"the checkpoint was made with other nodes (in one only: {odd})")
        for name in state.keys() & self._by_name.keys():
            member, entry = self._by_name[name], state[name]
            member.acknowledged, member.withdrawn = entry["acknowledged"], entry["withdrawn"]
            member.anchor = member.anchor or entry["anchor"]  # the project may know a newer one


def drawn(nodes: int, size: int, seed: int, server_round: int) -> list[int]:
    """Which `size` of `nodes` a round draws, ascending."""
    chosen = np.random.default_rng([seed, server_round]).choice(nodes, size=size, replace=False)
    return sorted(int(index) for index in chosen)


def error_text(reply: Message) -> str:
    """Why a node sends no answer, in its own words, cleaned.

    Args:
        reply: One that has an error.
    """
    return clean_text(str(reply.error.reason or ""))


def is_lost(reply: Message) -> bool:
    """Whether the reply is Flower's word that the real one will not come."""
    return reply.has_error() and reply.error.code in LOST


def refusal_of(reply: Message) -> RefusedReply | None:
    """Why a node refuses, where the reply is a refusal: the rule of the site's policy, and its words, cleaned."""
    refused = read_refusal(reply.error) if reply.has_error() else None
    return refused and replace(refused, text=error_text(reply))
