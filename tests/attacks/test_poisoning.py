"""A hostile site sends what does the most harm to the model, as long and as often as it is taken."""

import numpy as np
import pytest
from fake_grid import FEDERATED, SIZE, federate, real_nodes, spoiled
from flwr.app import ConfigRecord

from fedglm.compression.codec import decode, make_codec
from fedglm.protocol.messages import RECORD, UPDATE

pytestmark = pytest.mark.usefixtures("unsynced")

ROUNDS = 3


def reversed_by(scale):
    """The site's own honest update, reversed and `scale` times as long."""

    def spoil(reply, _message):
        fields = dict(reply.content[RECORD])
        values = decode(fields[UPDATE], size=SIZE).to_dense()
        fields[UPDATE] = make_codec("topk-fp16", density=0.1).encode((-scale * values).astype(np.float32))
        reply.content[RECORD] = ConfigRecord(fields)
        return reply

    return spoil


def moved(folder, scale=None):
    """How far the model is from where it began."""
    nodes = real_nodes(folder, "abcd")
    if scale is not None:
        nodes[10] = spoiled(nodes[10], reversed_by(scale), rounds=range(1, ROUNDS + 1))
    coordinator, _, _ = federate(folder, nodes, rounds=ROUNDS, round_timeout_s=60.0, server_optimizer="plain")
    return np.linalg.norm(coordinator.vector - FEDERATED.initial), coordinator.rows


def test_one_site_of_four_moves_the_model_no_further_than_honest_ones_could(tmp_path):
    """Each round's mean is of updates that are as long as the median at 1.25 times."""
    honest, _ = moved(tmp_path / "honest")
    poisoned, rows = moved(tmp_path / "poisoned", 1000.0)
    assert poisoned <= 2 * 1.25 * honest
    assert all(row["counted"]["a"] < 0.01 for row in rows)
