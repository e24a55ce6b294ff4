"""A Flower grid of plain functions, and a federation of tiny nodes on it."""

import random
from collections.abc import Callable, Iterable
from dataclasses import replace

from custodies import SERVER, custody
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from plans import SPEC_FIELDS, make_spec
from tiny_federation import federated_model, tiny_node

from fedglm.client.app import NodeContext, build_client_app
from fedglm.client.gate import OutboundGate
from fedglm.compression.settings import DownlinkSettings
from fedglm.core.clock import WALL_CLOCK
from fedglm.protocol.messages import MODEL, TrainRequest
from fedglm.server.coordinator import Coordinator
from fedglm.server.run_setup import Plan
from fedglm.server.settings import FederationSettings, ServerOptimizerSettings

FEDERATED = federated_model()
SIZE = FEDERATED.layout.size
Answer = Callable[[Message], Message | None]


class FakeGrid(Grid):
    """Nodes as functions from a message to a reply, or to None for silence; replies come one by one, in any order.

    Attributes:
        sent, received: messages and replies so far, in the order in which they passed.
        stray: replies that the next pull gives on top, asked for or not.
        offline: nodes that are not connected.
    """

    def __init__(self, nodes: dict[int, Answer], seed: int = 0) -> None:
        self.nodes = nodes
        self.sent: list[Message] = []
        self.received: list[Message] = []
        self.stray: list[Message] = []
        self.offline: set[int] = set()
        self._under_way: dict[str, Message] = {}
        self._order = random.Random(seed)  # noqa: S311 - a test's order
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def set_run(self, run: Run) -> None:
        """No run is described here."""

    @property
    def run(self) -> Run:
        return Run.create_empty(run_id=1)

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return [node_id for node_id in self.nodes if node_id not in self.offline]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(f"m{len(self.sent)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.sent.append(message)
            self._under_way[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies, self.stray = self.stray, []
        waiting = sorted(self._under_way.keys() & set(message_ids))
        if waiting:
            message = self._under_way.pop(self._order.choice(waiting))
            reply = self.nodes[message.metadata.dst_node_id](message)
            if reply is not None:
                replies.append(reply)
        self.received += replies
        return replies

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError("the coordinator takes replies one by one")


class Watcher:
    """Keeps what it is told, and calls `hook` with each event."""

    def __init__(self, hook=None) -> None:
        self.events = []
        self._hook = hook

    def _tell(self, *event):
        self.events.append(event)
        if self._hook:
            self._hook(*event)

    def resumed(self, rows):
        self._tell("resumed", len(rows))

    def round_started(self, server_round, sampled):
        self._tell("started", server_round, sampled)

    def sites_asked(self, server_round, sites):
        self._tell("asked", server_round, *sites)

    def presence_changed(self, server_round, site, state, since):
        self._tell("presence", server_round, site, state, since)

    def site_revoked(self, server_round, site, reason):
        self._tell("revoked", server_round, site, reason)

    def plan_refused(self, node_id, reason, site=None):
        self._tell("refused", node_id, reason, site)

    def rejected(self, node_id, reason, site=None):
        self._tell("away", node_id, reason, site)

    def reply_taken(self, server_round, node, fault):
        self._tell("reply", server_round, node, fault)

    def round_done(self, rows):
        self._tell("done", len(rows))


def instruction_of(fields) -> TrainRequest:
    """What a message to a node says, beside the model in it."""
    return TrainRequest.from_fields({name: value for name, value in fields.items() if name != MODEL})


def answering(node, *, share_metrics=False, key=None, light=None, models=None, **policy) -> Answer:
    """The node behind the real ClientApp and the real gate, which lets out all but what `policy` keeps.

    With a `key` it signs what it sends; `light` and `models` are the light releases and models that it holds.
    """
    metrics = ("loss", "metric", "count") if share_metrics else ()
    gate = OutboundGate(custody(node.folder / "custody", metrics=metrics, **policy), node.folder, key)
    app = build_client_app(lambda _: NodeContext(gate, lambda: node, light, models))
    context = Context(1, 1, {}, RecordDict(), {})
    return lambda message: app(message, context)


def real_nodes(folder, names="abc", *, update=None, model=None, **options):
    return {
        10 - i: answering(
            tiny_node(folder, name, data_seed=i, rows=10 * (i + 1), update=update, model=model), **options
        )
        for i, name in enumerate(names)
    }


def plan(folder, **changes):
    """Changes go to the settings that know them."""
    federation = {"rounds": 3, "round_timeout_s": 30.0}
    spec = {"local_steps": 3, "codec": "topk-fp16", "density": None, "mechanism": None}
    optimizer = {"server_optimizer": "nesterov"}
    whole = {}
    for key, value in changes.items():
        if key in SPEC_FIELDS - {"rounds"}:
            spec[key] = value
            continue
        for settings, target in ((FederationSettings, federation), (ServerOptimizerSettings, optimizer)):
            if key in settings.model_fields:
                target[key] = value
                break
        else:
            whole[key] = value
    noise = spec["mechanism"] and spec["mechanism"].noise_multiplier
    defaults = {"rounds": federation["rounds"], "turns": federation["rounds"], "noise_at_most": noise}
    made = Plan(
        federation=FederationSettings(**federation),
        optimizer=ServerOptimizerSettings(**optimizer),
        spec=make_spec(**defaults | spec),
        key=SERVER,
        downlink=DownlinkSettings(codec="topk-sign", density=0.2),
        learning_rate=0.05,
        layout=FEDERATED.layout,
        initial=FEDERATED.initial,
        evaluate=None,
        metric="accuracy",
        checkpoints=folder / "checkpoint",
    )
    return replace(made, **whole)


def federate(folder, nodes=None, *, seed=0, hook=None, resume=False, stop=None, clock=WALL_CLOCK, **changes):
    grid = FakeGrid(real_nodes(folder) if nodes is None else nodes, seed)
    watcher = Watcher(hook)
    coordinator = Coordinator(plan(folder, **changes), grid, listener=watcher, resume=resume, stop=stop, clock=clock)
    coordinator.run()
    return coordinator, grid, watcher


def timeless(rows):
    return [{key: value for key, value in row.items() if key != "wall_s"} for row in rows]


def spoiled(answer, spoil, rounds=(2,)):
    """The node, but what it replies in some rounds is `spoil(reply, message)`."""

    def act(message):
        reply = answer(message)
        if message.metadata.message_type != "train" or int(message.metadata.group_id) not in rounds:
            return reply
        return spoil(reply, message)

    return act


def errs(_reply, message):
    return Message(Error(code=1, reason="out of order today"), reply_to=message)
