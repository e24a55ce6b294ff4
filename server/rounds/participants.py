"""The server's record of its nodes: their identities, the model version that each holds, its last aggregated update."""

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
"""Flower's error codes for a lost message or process; they are no result of the node's own work."""


class FederationError(FedglmError, RuntimeError):
    """The federation cannot start or continue; the message gives the reason and a remedy."""


@dataclass
class Participant:
    """The server's state of one node.

    Attributes:
        name: Name that the node gives itself, unique.
        node_id: Flower's node id, valid only while the runtime runs; None until the node has joined.
        version: Model version that the node holds; None if no delta can be applied to it. Version 0 is the
            initialisation, which each node computes itself.
        acknowledged: Last round whose update was aggregated, 0 for none.
        examples: Number of examples that the node declares.
        weight: Public weight in the mean, in (0, 1].
        anchor: State of the node's log, and with it of its privacy ledger, in its last reply; None where that had none.
        withdrawn: Reason why the node takes no further part: its budget is spent. Empty while it takes part.
        is_absent: Whether no round waits for the node, because it has not been connected for a while; `Presence` sets
            it.
        is_revoked: Whether the site's keys were revoked while the run went on: it takes no part until the run is
            resumed.
    """

    name: str
    node_id: int | None = None
    version: int | None = 0
    acknowledged: int = 0
    examples: int = 0
    weight: float = 1.0
    anchor: str | None = None
    withdrawn: str = ""
    is_absent: bool = False
    is_revoked: bool = False


class Participants:
    """All nodes of a run, by name.

    Args:
        members: Nodes in any order.
    """

    def __init__(self, members: list[Participant]) -> None:
        self._by_name = {member.name: member for member in sorted(members, key=lambda m: m.name)}
        self._by_id = {member.node_id: member for member in members if member.node_id is not None}

    @property
    def size(self) -> int:
        """Number of nodes that were not revoked, joined or not."""
        return sum(not member.is_revoked for member in self._by_name.values())

    @property
    def joined(self) -> list[Participant]:
        """Nodes that joined and were not revoked, also those that withdrew since, sorted by name."""
        return [member for member in self._by_name.values() if member.node_id is not None and not member.is_revoked]

    @property
    def active(self) -> list[Participant]:
        """Nodes that joined and did not withdraw, sorted by name."""
        return [member for member in self.joined if not member.withdrawn]

    @property
    def pending(self) -> list[str]:
        """Names of the nodes that have not joined, did not withdraw and were not revoked."""
        members = self._by_name.items()
        return [name for name, m in members if m.node_id is None and not m.withdrawn and not m.is_revoked]

    @property
    def revoked(self) -> list[Participant]:
        """Nodes that were revoked while the run went on, sorted by name."""
        return [member for member in self._by_name.values() if member.is_revoked]

    def find_by_id(self, node_id: int) -> Participant | None:
        """Return the participant with a Flower node id; None where it has joined again with another id since."""
        return self._by_id.get(node_id)

    def find_by_name(self, name: str) -> Participant | None:
        """Return the participant of a name; None where there is none."""
        return self._by_name.get(name)

    def join(self, member: Participant) -> Participant:
        """Record the id, version and examples of a node that joins, for the first time or again.

        Returns:
            The known participant of that name.
        """
        known = self._by_name[member.name]
        if known.node_id is not None:
            self._by_id.pop(known.node_id, None)
        known.node_id, known.version, known.examples = member.node_id, member.version, member.examples
        if known.node_id is not None:
            self._by_id[known.node_id] = known
        return known

    def set_weights(self, cap: float) -> None:
        """Set the weights of all nodes that have joined, from the examples that they declare (at least 1 each).

        Args:
            cap: Maximum ratio of two weights, at least 1.
        """
        weights = compute_public_weights({member.name: member.examples for member in self.joined}, cap)
        for member in self.joined:
            member.weight = weights[member.name]

    def sample(self, size: int, seed: int, server_round: int) -> list[Participant]:
        """Sample `size` of the active nodes, sorted by name: the same for a seed, whatever ids the runtime assigned."""
        active = self.active
        return [active[index] for index in draw_indices(len(active), size, seed, server_round)]

    def state(self) -> dict[str, dict[str, Any]]:
        """Return the fields that a checkpoint keeps, by name of the node: acknowledged round, anchor and withdrawal."""
        return {
            name: {"acknowledged": member.acknowledged, "anchor": member.anchor, "withdrawn": member.withdrawn}
            for name, member in self._by_name.items()
        }

    def restore(self, state: dict[str, dict[str, Any]], *, strict: bool = True) -> None:
        """Restore the fields of a checkpoint.

        Args:
            state: Fields that `state` returned.
            strict: Whether the nodes must be the same; else sites may have been enrolled and revoked meanwhile.

        Raises:
            FederationError: The nodes differ, and `strict` is set.
        """
        if strict and state and state.keys() != self._by_name.keys():
            differing = ", ".join(sorted(state.keys() ^ self._by_name.keys()))
            raise FederationError(f"the checkpoint was made with other nodes (in one only: {differing})")
        for name in state.keys() & self._by_name.keys():
            member, entry = self._by_name[name], state[name]
            member.acknowledged, member.withdrawn = entry["acknowledged"], entry["withdrawn"]
            member.anchor = member.anchor or entry["anchor"]  # the project may know a newer one


def draw_indices(nodes: int, size: int, seed: int, server_round: int) -> list[int]:
    """Draw `size` distinct indices below `nodes` for a round, ascending; the same for the same seed and round."""
    chosen = np.random.default_rng([seed, server_round]).choice(nodes, size=size, replace=False)
    return sorted(int(index) for index in chosen)


def read_error_text(reply: Message) -> str:
    """Return the untrusted reason of an error reply, cleaned for display."""
    return clean_text(str(reply.error.reason or ""))


def is_lost(reply: Message) -> bool:
    """Return whether the reply is an error of Flower's, which means that the node's own reply will not arrive."""
    return reply.has_error() and reply.error.code in LOST


def read_refused_reply(reply: Message) -> RefusedReply | None:
    """Return the refusal that a reply holds, with its text cleaned for display; None where it holds none."""
    refused = read_refusal(reply.error) if reply.has_error() else None
    return refused and replace(refused, text=read_error_text(reply))
