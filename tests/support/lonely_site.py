"""One site of a tiny model behind its gate, and what a server that holds the plan's key may ask of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from custodies import MECHANISM, announced, custody, run_plan
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from tiny_federation import examples, federated_model, tiny_node

from fedglm.client.app import NodeContext, build_client_app
from fedglm.client.gate import OutboundGate
from fedglm.compression.codec import make_codec
from fedglm.compression.downlink import ModelVersions
from fedglm.protocol.messages import MODEL, PLAN, RECORD, UPDATE, TrainRequest

FEDERATED = federated_model()
LAYOUT, SIZE = FEDERATED.layout.sha256, FEDERATED.layout.size
RATE = 0.05


class Killed(BaseException):
    """The process ends here: nothing after it is done, and nothing catches it."""


@dataclass
class LonelySite:
    """A site; `start` is a new process of it, which knows what lies on the disk."""

    folder: Path
    policy: dict[str, Any] = field(default_factory=dict)
    update: dict[str, Any] = field(default_factory=lambda: {"codec": "dense-fp32"})
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.start()

    def start(self):
        self.use(custody(self.folder / "site" / "custody", **({"private": True} | self.policy)))

    def use(self, found):
        """Answer under a custody that was opened anew."""
        self.custody, self.gate = found, OutboundGate(found, self.folder)
        self.node = tiny_node(
            self.folder, "site", model=FEDERATED, update=self.update, **({"optimizer": "sgd"} | self.training)
        )
        self.node._trainer._train = examples(20, 3)
        self.app = build_client_app(lambda _: NodeContext(self.gate, lambda: self.node))

    def ask(self, kind, fields):
        """What leaves; None where the process was killed before it answered."""
        message = Message(RecordDict({RECORD: ConfigRecord(fields)}), dst_node_id=1, message_type=kind, group_id="1")
        message.metadata.__dict__["_message_id"] = "m"
        try:
            return self.app(message, Context(1, 1, {}, RecordDict(), {}))
        except Killed:
            self.start()
            return None

    def announce(self, codec="dense-fp32", **changes):
        changes = {"mechanism": MECHANISM, "model": model_sha256()} | changes
        plan = run_plan(LAYOUT, parameters=SIZE, codec=codec, **changes)
        return self.ask("query", {PLAN: announced(plan)})

    def train(self, number, *, acknowledged=0, run="run-1", version=0, base=None, **changes):
        vector = FEDERATED.initial if base is None else base
        versions = ModelVersions(vector, LAYOUT, make_codec("dense-fp32"), grid="fp16")
        versions.version = version
        order = TrainRequest(
            run=run, round=number, nonce="0" * 16, layout=LAYOUT, version=version, acknowledged=acknowledged,
            **({"learning_rate": RATE, "evaluate": False} | changes),
        )  # fmt: skip
        return self.ask("train", {**order.to_fields(), MODEL: versions.snapshot()})

    @property
    def rows(self):
        return self.custody.ledger.rows()


def model_sha256(vector=None):
    vector = FEDERATED.initial if vector is None else vector
    return ModelVersions(np.asarray(vector), LAYOUT, make_codec("dense-fp32"), grid="fp16").sha256


def update_of(reply):
    return reply.content[RECORD][UPDATE]
