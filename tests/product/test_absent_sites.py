"""Real processes: a site that is switched off and one that is revoked delay one round each, and the others go on."""

import statistics

import pytest
from command_line import run_here
from real_federation import Federation, told

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROUNDS = 9
GRACE_S = 12.0
SETTINGS = (
    *("--no-dp", "--rounds", ROUNDS, "--set", "evaluation.baselines=[]"),
    *("--set", f"federation.offline_grace_s={GRACE_S}"),
)


def happened(federation, kind):
    return lambda: any(event["event"] == kind for event in federation.events("disturbed"))


def test_rounds_go_on_without_a_site_that_is_off_and_one_that_is_revoked(tmp_path):
    with Federation(tmp_path, 4) as federation:
        federation.start()
        with federation.run("hospital", "calm", *SETTINGS) as process:
            told(process.finish(timeout=900))
        calm = [row["wall_s"] for row in federation.rounds("calm")]
        with federation.run("hospital", "disturbed", *SETTINGS) as process:
            process.until(lambda: len(federation.rounds("disturbed")) == 2, 300)
            told(run_here("client", "stop", federation.site("site-3")))
            process.until(happened(federation, "offline"), 300)
            process.until(lambda: len(federation.rounds("disturbed")) >= 4, 300)
            told(run_here("server", "revoke", "site-2", "-C", federation.project))
            process.until(happened(federation, "revoked"), 60)
            process.until(lambda: len(federation.rounds("disturbed")) >= 6, 300)
            federation.start_site("site-3")
            told(process.finish(timeout=900))
        rows, run = federation.rounds("disturbed"), federation.project / "runs" / "disturbed"
        seen = told(run_here("watch", run, "--json")).json
        verified = told(run_here("audit", "verify", run, "--json")).json
        with federation.run("hospital", "refused", *SETTINGS, "--set", "training.local_steps=5000") as process:
            assert process.finish(timeout=120).code == 2
        refused = {event["site"] for event in federation.events("refused") if event["event"] == "refused"}
        federation.stop()
    assert refused == {"site-0", "site-1", "site-3"}
    print("calm", calm)
    print("disturbed", [row["wall_s"] for row in rows], [row.get("absent") for row in rows])
    assert [row["nodes_rejected"] for row in rows] == [0] * ROUNDS
    absent = [row["round"] for row in rows if row.get("absent") == ["site-3"]]
    assert absent
    assert absent == list(range(absent[0], absent[-1] + 1))
    assert absent[-1] < ROUNDS, "once it is back, it takes part again"
    assert seen["absences"] == len(absent)
    assert [site["name"] for site in seen["revoked"]] == ["site-2"]
    assert rows[-1]["nodes_sampled"] == 3
    assert rows[-1]["nodes_accepted"] == 3
    first = rows[absent[0] - 1]
    assert GRACE_S <= first["wall_s"] < GRACE_S + 60.0
    back = absent[-1] + 1  # its node builds the model anew
    assert rows[back - 1]["nodes_accepted"] == rows[back - 1]["nodes_sampled"] == 3
    others = [row["wall_s"] for row in rows if row["round"] not in (absent[0], back)]
    assert max(others) < GRACE_S, "no other round waits"
    assert statistics.median(others) <= 1.2 * statistics.median(calm)
    assert verified["held"]
