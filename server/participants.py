"""The server's book of its nodes: who they are, which model version each holds, which update was folded in last."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedglm.compression.codec import CodecError
from fedglm.compression.messages import PLAN, RECORD, Introduction
from fedglm.server.aggregation import public_weights
from fedglm.server.exchange import Exchange


class FederationError(RuntimeError):
    """The federation cannot start or go on; the message says why and what would help."""


@dataclass
class Participant:
    """One node as the server knows it.

    Attributes:
        name: Given by the node, unique.
        node_id: Flower's, valid for this run of the runtime only.
        version: Model version that the node holds, None if it cannot be built upon; version 0 is the initialisation,
            which each node computes itself.
        acknowledged: Last round whose update was folded in, 0 for none.
        weight: Public weight in the mean.
        ledger: Where its privacy ledger stood in its last report; None where it reported none.
        withdrawn: Why it takes no further part: its budget is spent. Empty while it does.
    """

    name: str
    node_id: int
    version: int | None = 0
    acknowledged: int = 0
    weight: float = 1.0
    ledger: str | None = None
    withdrawn: str = ""


class Participants:
    """All nodes of a run, by name.

    Args:
        members: In any order.
    """

    def __init__(self, members: list[Participant]) -> None:
        self._by_name = {member.name: member for member in sorted(members, key=lambda m: m.name)}
        self._by_id = {member.node_id: member for member in members}

    @property
    def active(self) -> list[Participant]:
        """Those that did not withdraw, by name."""
        return [member for member in self._by_name.values() if not member.withdrawn]

    def of_node(self, node_id: int) -> Participant:
        """The participant behind a Flower node id."""
        return self._by_id[node_id]

    def sample(self, size: int, seed: int, server_round: int) -> list[Participant]:
        """`size` of the nodes that still take part, by name: the same for a seed, whatever ids the runtime gave."""
        active = self.active
        return [active[index] for index in drawn(len(active), size, seed, server_round)]

    def state(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint keeps: which residual may be committed, where the ledger stood, who withdrew."""
        return {
            name: {"acknowledged": member.acknowledged, "ledger": member.ledger, "withdrawn": member.withdrawn}
            for name, member in self._by_name.items()
        }

    def restore(self, state: dict[str, dict[str, Any]]) -> None:
        """Take up a checkpoint's book.

        Raises:
            FederationError: The run was made with other nodes.
        """
        if state and state.keys() != self._by_name.keys():
            odd = ", ".join(sorted(state.keys() ^ self._by_name.keys()))
            raise FederationError(f"the checkpoint was made with other nodes (in one only: {odd})")
        for name, entry in state.items():
            member = self._by_name[name]
            member.acknowledged, member.withdrawn = entry["acknowledged"], entry["withdrawn"]
            member.ledger = entry["ledger"]


def drawn(nodes: int, size: int, seed: int, server_round: int) -> list[int]:
    """Which `size` of `nodes` a round draws, ascending."""
    chosen = np.random.default_rng([seed, server_round]).choice(nodes, size=size, replace=False)
    return sorted(int(index) for index in chosen)


def refusal_of(reply: Message) -> str | None:
    """Why a node refuses, where the reply is a refusal: it names the rule of the site's policy."""
    refused = reply.has_error() and reply.error.code == int(ErrorCode.MOD_FAILED_PRECONDITION)
    return reply.error.reason if refused else None


def introduce(
    grid: Grid,
    exchange: Exchange,
    *,
    plan: bytes,
    run: str,
    layout: str,
    declared: bool,
    cap: float,
    timeout_s: float,
    refused: Callable[[int, str], None],
) -> Participants:
    """Announce the signed plan of the run to every connected node, and ask who it is.

    Args:
        grid: The nodes.
        exchange: Messages to them.
        plan: `SignedPlan.to_bytes`.
        run: Identity of the run.
        layout: SHA-256 of the model's layout.
        declared: Weigh nodes by the counts that they declare.
        cap: Greatest ratio of two weights.
        timeout_s: Seconds to wait.
        refused: Is told of each node (Flower's id) whose policy refuses the plan, and why; the run goes on without it.

    Raises:
        FederationError: A node does not answer, fails, builds another model, or shares its name with another; or no
            policy permits the plan.
    """
    query = RecordDict({RECORD: ConfigRecord({PLAN: plan})})
    exchange.send(((node_id, query) for node_id in sorted(grid.get_node_ids())), "query", 0)
    members: list[Participant] = []
    examples: dict[str, int] = {}
    refusals: list[str] = []
    for node_id, reply in exchange.replies(timeout_s):
        if (reason := refusal_of(reply)) is not None:
            refusals.append(reason)
            refused(node_id, reason)
            continue
        words = _read(reply)
        if words.layout != layout:
            raise FederationError(
                f"node {words.name} builds a model of another layout: give it the server's [model] and [data]"
            )
        if words.name in examples:
            raise FederationError(f"two nodes call themselves {words.name!r}: names must be unique")
        examples[words.name] = words.examples
        held = words.version if words.run == run and words.version >= 0 else 0
        members.append(Participant(name=words.name, node_id=node_id, version=held))
    silent = exchange.abandon()
    if silent:
        raise FederationError(f"{len(silent)} of {len(silent) + len(members)} nodes did not answer the first query")
    if not members:
        raise FederationError(f"no site permits the plan: {refusals[0]}" if refusals else "no node is connected")
    if declared:
        missing = sorted(name for name, count in examples.items() if count < 1)
        if missing:
            raise FederationError(f"weighting is 'declared', but no count was declared by: {', '.join(missing)}")
        weights = public_weights(examples, cap)
        for member in members:
            member.weight = weights[member.name]
    return Participants(members)


def _read(reply: Message) -> Introduction:
    if reply.has_error():
        raise FederationError(f"a node cannot take part: {reply.error.reason}")
    try:
        return Introduction.from_fields(reply.content.config_records[RECORD])
    except (KeyError, CodecError) as exc:
        raise FederationError(f"a node introduces itself in a way this server does not know: {exc}") from exc
