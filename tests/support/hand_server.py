"""The other end of a node, by hand."""

from dataclasses import replace

import numpy as np
from custodies import FREELY
from tiny_federation import federated_model

from fedglm.compression.codec import make_codec
from fedglm.compression.downlink import ModelVersions
from fedglm.protocol.messages import TrainRequest

FEDERATED = federated_model()
SIZE = FEDERATED.layout.size


class Server:
    """The other end, by hand: model versions and an instruction for each round."""

    def __init__(self, run="run-1", codec="dense-fp32"):
        self.run = run
        self.versions = ModelVersions(FEDERATED.initial, FEDERATED.layout.sha256, make_codec(codec), grid="fp16")

    def step(self, seed):
        self.versions.publish(np.random.default_rng(seed).normal(0, 0.01, SIZE).astype(np.float32))

    def order(self, number, *, acknowledged=0, **changes):
        instruction = TrainRequest(
            run=self.run,
            round=number,
            nonce=f"nonce-{number}",
            layout=FEDERATED.layout.sha256,
            version=self.versions.version,
            acknowledged=acknowledged,
            learning_rate=0.05,
            evaluate=False,
        )
        return replace(instruction, **changes)

    def ask(self, node, number, *, held=None, acknowledged=0, **changes):
        held = node.join().version if held is None else held
        blob = self.versions.message_since(max(held, 0))
        return node.train(self.order(number, acknowledged=acknowledged, **changes), blob, FREELY)
