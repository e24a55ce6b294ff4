"""Attacks on a run's updates: they find what lies open, and nothing where there is noise."""

import pytest

from fedglm.simulations.attacks import attack_run
from fedglm.simulations.audit_facts import read_facts
from fedglm.simulations.audit_items import items


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_attacks_on_hospital(fedglm, tmp_path):
    """Membership is asked of 240 records, so that chance alone moves an area by 0.04; tokens of 2,000."""
    run = tmp_path / "run"
    done = fedglm("simulate", "hospital", "--rounds", "2", "--set", "evaluation.baselines=[]", "--out", run)
    assert done.code == 0
    found = attack_run(run)
    assert {result.attack for result in found} == {
        "tokens of a site",
        "tokens of one record",
        "membership by gradients",
        "membership by loss",
        "membership by shadow models",
    }
    assert len(found) == 5 * 4
    bare = [result for result in found if not result.private and not result.coded]
    assert max(result.auc for result in bare) >= 0.9
    for result in found:
        if result.private:
            assert result.low <= 0.5, result
            assert result.auc <= (0.55 if result.attack.startswith("tokens") else 0.65), result
    (eighth,) = [item for item in items(read_facts(run)) if item.number == 8]
    assert any("tokens of one record" in line for line in eighth.evidence)


def test_a_folder_without_a_run_is_named(fedglm, tmp_path):
    assert "holds no run" in fedglm("audit", "attack", tmp_path).line()
    assert "holds no run" in fedglm("audit", "canaries", tmp_path).line()
