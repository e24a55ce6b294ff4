"""Figures of a run that goes on without some of its sites."""

import time

from runs_under_way import Going

from fedglm.run_folder.progress import read_view
from fedglm.server.superlink.metrics import collect_run_metrics


def test_absent_and_revoked_sites_are_figures_of_their_own(tmp_path):
    run = Going(tmp_path / "trial")
    run.round()
    run.round()
    run.rows[-1] |= {"nodes_sampled": 4, "absent": ["c", "d"]}
    for name, state in (("c", "offline"), ("c", "absent"), ("d", "offline"), ("f", "absent"), ("f", "online")):
        run.log.presence_changed(3, name, state, time.time())
    run.log.site_revoked(3, "e", "its keys were revoked")
    run.log.round_done(run.rows)
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for metric in collect_run_metrics([read_view(run.folder)])
        for sample in metric.samples
    }
    assert found["fedglm_run_sites_missing", "absent", "trial"] == 1
    assert found["fedglm_run_sites_missing", "revoked", "trial"] == 1
    assert found["fedglm_run_absences_total", "trial"] == 2
    assert found["fedglm_run_updates_total", "rejected", "trial"] == 0
