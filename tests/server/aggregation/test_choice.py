"""Which aggregation the settings ask for, and what it remembers from round to round."""

import numpy as np
import pytest
from honest_updates import CODEC, SIZE, honest

from fedglm.compression.codec import CodecError, decode
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.server.aggregation.central_dp import ClientPrivacy
from fedglm.server.aggregation.choice import make_aggregation
from fedglm.server.aggregation.mean import MeanAggregation, PrivateAggregation
from fedglm.server.aggregation.robust_mean import RobustAggregation
from fedglm.server.settings import FederationSettings


def made(folder, *, adds_noise=False, client_privacy=None, reference=None, preview=None, **federation):
    return make_aggregation(
        FederationSettings(**federation),
        size=SIZE,
        folder=folder,
        codec="topk-fp16",
        adds_noise=adds_noise,
        client_privacy=client_privacy,
        reference=reference,
        preview=preview,
    )


def private():
    mechanism = Mechanism(
        sampling_rate=0.5, steps=1, clipping_norm=1.0, noise_multiplier=2.0, unit="node", records_per_unit=1
    )
    return ClientPrivacy(mechanism, nodes=4, epsilon=50.0, delta=1e-2)


def closed(aggregation, vectors, rows=()):
    aggregator = aggregation.begin(list(rows), sampled=len(vectors), eligible=len(vectors))
    for index, vector in enumerate(vectors):
        blob = CODEC.encode(vector)
        aggregator.add(f"node-{index}", 1.0, decode(blob, size=SIZE), blob)
    return aggregator.close()


def test_the_settings_choose(tmp_path):
    assert type(made(tmp_path)) is RobustAggregation
    assert type(made(tmp_path, aggregation="mean")) is MeanAggregation
    assert type(made(tmp_path, client_privacy=private())) is PrivateAggregation
    assert type(made(tmp_path, aggregation="mean", client_privacy=private())) is PrivateAggregation


def test_the_bound_is_tighter_where_nodes_add_noise(tmp_path):
    vectors = [scale * vector for scale, vector in zip((1.0, 1.0, 1.0, 1.2, 0.8), honest(5), strict=True)]
    cut = {noise: closed(made(tmp_path, adds_noise=noise), vectors).contributions for noise in (False, True)}
    assert cut[True]["node-3"] < 0.9 < 0.99 < cut[False].get("node-3", 1.0)
    assert closed(made(tmp_path, clip_factor=2.0, adds_noise=True), vectors).contributions == {}


def test_the_direction_of_the_last_rounds_is_remembered_under_noise_alone(tmp_path):
    first, second = honest(4), honest(4)[::-1]
    whole = made(tmp_path, adds_noise=True)
    assert whole.state() == {}
    mean = closed(whole, first).mean
    assert whole.state()["drift"].tobytes() == mean.tobytes()
    resumed = made(tmp_path, adds_noise=True)
    resumed.restore({name: array.copy() for name, array in whole.state().items()})
    again, mean = closed(resumed, second), closed(whole, second)
    assert again.mean.tobytes() == mean.mean.tobytes()
    assert resumed.state()["drift"].tobytes() == whole.state()["drift"].tobytes()
    still = made(tmp_path)
    closed(still, first)
    assert still.state() == {}


def test_reference_records_are_asked_of_the_round_after_the_rows(tmp_path):
    numbers = []

    def reference(models, number):
        numbers.append(number)
        return [0.0] * len(list(models))

    aggregation = made(tmp_path, reference=reference, preview=lambda mean, _: (mean, mean))
    closed(aggregation, honest(4), rows=[{}] * 6)
    assert set(numbers) == {7}


def test_room_is_for_those_that_are_asked_or_in_private_for_all(tmp_path):
    update = decode(CODEC.encode(np.full(SIZE, 60000.0, np.float32)), size=SIZE)
    plain = made(tmp_path, aggregation="mean")
    plain.begin([], sampled=50, eligible=10**9).add("a", 1.0, update, b"")
    with pytest.raises(CodecError, match="beyond the limit"):
        plain.begin([], sampled=10**6, eligible=1).add("a", 1.0, update, b"")
    kept = made(tmp_path, client_privacy=private())
    assert kept.begin([], sampled=1, eligible=4).close().mean.dtype == np.float32
