"""One node of somebody's own Flower app: it ends no run, and with a clip factor takes no model where it likes."""

import numpy as np
import pytest
from flower_wire import START, Wire, avg, drift
from flwr.app import Array
from flwr.serverapp.strategy import FedAvg, FedMedian

from fedglm.server.strategy import Compressed


def hostile(number, **changes):
    """The replies, of which the node of that number says something else of itself."""

    def spoil(replies):
        for reply in replies:
            if reply.metadata.src_node_id == number:
                (metrics,) = reply.content.metric_records.values()
                metrics.update(changes)
        return replies

    return spoil


@pytest.mark.parametrize(
    "changes",
    [
        {"num-examples": 0},
        {"num-examples": -5},
        {"num-examples": float("nan")},
        {"num-examples": float("inf")},
        {"num-examples": [1.0, 2.0]},
        {"loss": float("nan")},
        {"loss": [1.0]},
        {"more": 1.0},
    ],
    ids=str,
)
def test_a_node_with_odd_metrics_fails_alone(tmp_path, changes):
    with_it, without = Wire(tmp_path / "a", avg(3), drift, nodes=3), Wire(tmp_path / "b", avg(3), drift, nodes=3)
    arrays, metrics = with_it.round(1, START, hostile(4, **changes))
    expected, _ = without.round(1, START, lambda replies: [r for r in replies if r.metadata.src_node_id != 4])
    assert metrics["loss"] == pytest.approx(2.5)
    np.testing.assert_array_equal(arrays["w"].numpy(), expected["w"].numpy())


def shouts(node, message, context):
    """As `drift`, but the last node moves a thousand times as far, and says that it has a million times the records."""
    reply = drift(node, message, context)
    if node == 4:
        (arrays,) = reply.content.array_records.values()
        arrays["w"] = Array(np.asarray(arrays["w"].numpy() * 1000))
        (metrics,) = reply.content.metric_records.values()
        metrics["num-examples"] = 10_000_000
    return reply


@pytest.mark.parametrize("kind", [FedAvg, FedMedian])
def test_with_a_clip_factor_no_node_takes_the_model_where_it_likes(tmp_path, kind):
    free = Wire(tmp_path / "free", avg(3, kind), shouts, nodes=3, codec="dense-fp32")
    bounded = Wire(tmp_path / "bounded", avg(3, kind), shouts, nodes=3, codec="dense-fp32")
    bounded.wrapped = Compressed(avg(3, kind), clip_factor=1.25)
    moved = np.linalg.norm(bounded.round(1, START)[0]["w"].numpy())
    honest = [np.linalg.norm(np.random.default_rng(node).normal(0, 0.1, 24)) for node in (2, 3)]
    assert moved <= 1.25 * max(honest)
    if kind is FedAvg:
        assert np.linalg.norm(free.round(1, START)[0]["w"].numpy()) > 100 * max(honest)


@pytest.mark.parametrize("factor", [0, 0.5, float("nan")])
def test_a_clip_factor_below_one_is_refused(factor):
    with pytest.raises(ValueError, match="clip_factor is a number from 1"):
        Compressed(avg(), clip_factor=factor)
