"""Real processes, records of the sites' own, noise, and a server that holds updates to reference records."""

import numpy as np
import pytest
from real_federation import Federation, fill_in, told

from fedglm.run_folder.names import REFERENCE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SCENARIO = """
name = "vitals"

[federation]
rounds = 3
reference = "reference.csv"

[data]
source = "nowhere.csv"
task = "tabular-classification"
label_field = "outcome"
class_names = ["ill", "well"]
feature_fields = ["x", "y"]
feature_ranges = { x = [-3, 3], y = [-3, 3] }

[training]
local_steps = 3
batch_size = 16
optimizer = "sgd"
learning_rate = 0.1

[privacy]
epsilon = 8.0
units = 100
"""

PRIVATE = {
    "epsilon": "8.0",
    "delta": "0.001",
    "unit": '"record"',
    "records_per_unit_at_most": "4",
    "noise_multiplier_at_least": "0.1",
    "clipping_norm_at_most": "1.0",
    "steps_at_most": "1000",
    "plans": '["*"]',
    "models": '["*"]',
    "codecs": '["topk-sign"]',
    "bytes_at_most": "10_000_000",
    "declare_units": "100",
}


def table(path, rows, seed):
    values = np.random.default_rng(seed).normal(size=(rows, 2))
    lines = [f"{x:.3f},{y:.3f},{'ill' if x + y > 0 else 'well'}" for x, y in values]
    path.write_text("\n".join(["x,y,outcome", *lines]) + "\n")


def test_a_private_run_of_real_sites_holds_updates_to_the_servers_records(tmp_path):
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    table(tmp_path / "reference.csv", 60, seed=9)
    site = {
        "source": '"records.csv"',
        "label_field": '"outcome"',
        "class_names": '["ill", "well"]',
        "feature_fields": '["x", "y"]',
    }

    def own_records(home):
        table(home / "records.csv", 125, seed=int(home.name[-1]))
        fill_in(home / "site.toml", site)

    with Federation(tmp_path, 3, prepare=own_records, policy=PRIVATE) as federation:
        federation.start()
        with federation.run(tmp_path / "scenario.toml", "private") as process:
            told(process.finish(timeout=900))
        federation.stop()
        rows = federation.rounds("private")
        for name in federation.names:
            assert len(federation.charges(name)) == 3
    assert [(row["nodes_accepted"], row["nodes_rejected"]) for row in rows] == [(3, 0)] * 3
    assert (federation.project / "runs" / "private" / REFERENCE).is_file()
    for row in rows:  # a minority at the most
        assert sum(share == 0 for share in row.get("counted", {}).values()) <= 1
