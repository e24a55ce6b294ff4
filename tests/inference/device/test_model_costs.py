"""Latencies of a release by a device's file: what a batcher and tiers read instead of measuring."""

import pytest
from device_law import make_table, write_device
from small_glms import config_of, random_glm, small_config, tensors_of, with_codes

from fedglm.autoglm.light.graph.formats import choose_formats
from fedglm.autoglm.light.graph.model import build_skeleton
from fedglm.inference.batching.scheduler import Scheduler
from fedglm.inference.device.model_costs import predict_costs
from fedglm.inference.errors import InferenceError


@pytest.fixture(scope="module")
def graphs():
    """Skeletons of one model in each format, and its configuration."""
    model = random_glm(small_config())
    config, tensors = config_of(model), with_codes(tensors_of(model))
    skeletons = {
        form: build_skeleton(config, choose_formats(tensors, config, form)) for form in ("fp32", "int8", "int4")
    }
    return config, skeletons


@pytest.mark.parametrize("form", ["fp32", "int8", "int4"])
def test_costs_are_those_of_the_table_in_the_graphs_format(form, graphs, tmp_path):
    config, skeletons = graphs
    costs = predict_costs(write_device(tmp_path / "edge.json"), config, {"decode": skeletons[form]}, 1)
    table = make_table()
    for batch in (1, 4):
        assert costs.milliseconds(batch, 1) == table.predict(config, form, batch=batch, past=64).decode_ms
        assert costs.milliseconds(batch, 24) == table.predict(config, form, batch=batch, past=24).prefill_ms


def test_each_phase_has_its_own_format(graphs, tmp_path):
    config, skeletons = graphs
    both = {"decode": skeletons["int4"], "prefill": skeletons["fp32"]}
    costs = predict_costs(write_device(tmp_path / "edge.json"), config, both, 1)
    table = make_table()
    assert costs.milliseconds(1, 1) == table.predict(config, "int4", past=64).decode_ms
    assert costs.milliseconds(1, 32) == table.predict(config, "fp32", past=32).prefill_ms
    Scheduler(costs, deadline_s=0.005, max_batch=4)


def test_a_device_with_other_threads_is_refused_with_the_remedy(graphs, tmp_path):
    config, skeletons = graphs
    path = write_device(tmp_path / "edge.json", threads=2)
    with pytest.raises(InferenceError, match=r"models on 2 threads, not 1: fedglm device probe --threads 1 --out"):
        predict_costs(path, config, {"decode": skeletons["int4"]}, 1)
    with pytest.raises(InferenceError, match="device probe --out"):
        predict_costs(tmp_path / "none.json", config, {"decode": skeletons["int4"]}, 1)
