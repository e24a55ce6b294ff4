"""What is new in a run of real sites, by the clock that one gives it."""

import pytest
from projects import make_project
from virtual_clock import VirtualClock

from fedglm.server.deployment.run_log import RunLog
from fedglm.server.deployment.run_news import RunNews

WAITS = "it waits for sites; fedglm server status says which are offline"


@pytest.fixture
def watched(tmp_path):
    """Its log, its news, the lines so far and the clock of a run."""
    project = make_project(tmp_path / "fl")
    (project.runs / "first").mkdir(parents=True)
    clock, lines = VirtualClock(), []
    log = RunLog(project.runs / "first", clock)
    return log, RunNews(project, "first", lines.append, clock=clock), lines, clock


def test_a_run_that_does_not_begin_is_worth_one_word(watched):
    _, news, lines, clock = watched
    for _ in range(60):
        news.report()
        clock.now += 1.0
        assert lines == ([WAITS] if clock.now > 16 else [])


def test_one_that_has_begun_is_told_by_its_rounds_and_refusals(watched):
    log, news, lines, clock = watched
    log.resumed([])
    news.report()
    clock.now += 100.0
    log.plan_refused(7, "refused by rule steps: steps: 20")
    log.rejected(8, "no site is enrolled under the name 'x'")
    log.plan_refused(7, "refused by rule steps: steps: 20")
    log.round_done([{"round": 1, "nodes_accepted": 2, "nodes_sampled": 3}])
    news.report()
    assert lines == [
        "node 7 refuses: refused by rule steps: steps: 20",
        "node 8 is turned away: no site is enrolled under the name 'x'",
        "round 1: 2 of 3 sites",
    ]
    news.report()
    assert len(lines) == 3
    rows = [{"round": number, "nodes_accepted": 3, "nodes_sampled": 3} for number in (1, 2)]
    log.round_done([rows[0], rows[1] | {"loss": 0.51234, "accuracy": 0.875}])
    news.report()
    assert lines[3:] == ["round 2: 3 of 3 sites, loss 0.5123, accuracy 0.875"]


def test_sites_that_are_absent_back_or_revoked_are_named(watched):
    log, news, lines, clock = watched
    log.resumed([])
    log.presence_changed(2, "berlin", "offline", clock.time())
    log.presence_changed(2, "bonn", "offline", clock.time())
    log.presence_changed(2, "bonn", "online", clock.time())
    log.presence_changed(2, "berlin", "absent", clock.time())
    log.site_revoked(2, "ulm", "its keys were revoked")
    log.plan_refused(7, "refused by rule steps: steps: 20", "kiel")
    log.round_done([{"round": 1, "nodes_accepted": 1, "nodes_sampled": 3, "absent": ["berlin"], "revoked": ["ulm"]}])
    log.presence_changed(3, "berlin", "online", clock.time())
    news.report()
    assert lines == [
        "site berlin is absent: rounds go on without it until it is back",
        "site ulm takes no further part: its keys were revoked",
        "site kiel refuses: refused by rule steps: steps: 20",
        "site berlin is back",
        "round 1: 1 of 3 sites (berlin absent; ulm revoked)",
    ]
