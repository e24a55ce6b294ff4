"""Anchors that a server keeps of a site's log between runs: they reveal a log that was restored from an older copy."""

import shutil

import pytest
from audited_run import SITES, kept_run
from custodies import custody
from fake_grid import answering
from tiny_federation import tiny_node

from fedglm.audit.records.checks import Verdict, select_failed
from fedglm.audit.verify.verification import verify
from fedglm.privacy.custody.site_log import CustodyLog
from fedglm.privacy.keys.signing import SigningKey
from fedglm.server.anchors import Anchors

pytestmark = pytest.mark.usefixtures("unsynced")


def run(home, name):
    """A run of enrolled sites, which sign; the server keeps their anchors in `home`."""
    nodes, keys = {}, {}
    for index, site in enumerate(SITES):
        custody(home / "nodes" / site / "custody", private=True)
        keys[site] = SigningKey.load(home / "nodes" / site / "custody" / "site.key")
        node = tiny_node(home / "nodes", site, data_seed=index, rows=20)
        nodes[10 - index] = answering(node, key=keys[site], private=True)
    sites = {site: key.public for site, key in keys.items()}
    kept_run(home / name, nodes, rounds=1, sites=sites, anchors=Anchors(home / "state"))
    return home / name


def test_a_log_that_was_put_back_between_runs_is_found_in_the_records_of_the_next(tmp_path, monkeypatch):
    first, site = run(tmp_path, "first"), tmp_path / "nodes" / "a"
    assert "earlier anchor" not in {check.name for check in verify(site, server=first).checks}
    shutil.copytree(site / "custody", tmp_path / "old")
    second = run(tmp_path, "second")
    honest = verify(site, server=second)
    assert [check.passed for check in honest.checks if check.name == "earlier anchor"] == [True]
    assert honest.verdict is Verdict.WHOLE
    shutil.rmtree(site / "custody")
    shutil.copytree(tmp_path / "old", site / "custody")
    with monkeypatch.context() as patch:
        patch.setattr(CustodyLog, "contains", lambda *_: True)  # the site's own software looks away
        third = run(tmp_path, "third")
    assert [(check.subject, check.name) for check in select_failed(verify(site, server=third).checks)] == [
        ("a", "earlier anchor")
    ]
    assert verify(tmp_path / "nodes" / "b", server=third).verdict is Verdict.WHOLE
    assert select_failed(verify(site, server=[first, second]).checks)
