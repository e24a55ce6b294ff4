"""A site's ledger and log are put back to an older copy between two runs: the epsilon in between is forgotten."""

import json
import shutil

import pytest
from audited_run import Chain, kept_run, small_nodes
from command_line import run_here
from custodies import SERVER

from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.log.signed_log import SignedLog
from fedglm.server.rounds.countersigning import Countersigning


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """Runs `first`, `second` and, after site a put back what it had after the first, `third`; all of one server."""
    home = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        for name in ("first", "second", "third"):
            patch.setattr(Countersigning, "seal", Countersigning.seal if name != "third" else lambda *_: None)
            kept_run(home / name, small_nodes(home / "nodes"), rounds=1)
            if name == "first":
                shutil.copytree(home / "nodes" / "a" / "custody", home / "old")
            elif name == "second":
                shutil.copytree(home / "nodes" / "a" / "custody", home / "honest")
                shutil.rmtree(home / "nodes" / "a" / "custody")
                shutil.copytree(home / "old", home / "nodes" / "a" / "custody")
    return home


def verify(*arguments):
    return run_here("audit", "verify", *arguments)


def anchored(run, anchor):
    """The server's log of a run, as it is where the server tells how it saw the site last when it admits it."""
    chain = Chain(run / "audit" / "log.sqlite")
    for place, text in enumerate(chain.texts):
        entry = json.loads(text)
        if (entry["kind"], entry.get("site")) == ("admitted", "a"):
            chain.texts[place] = canonical_json({**entry, "anchor": anchor}).decode()
    chain.write(chain=True, key=SERVER)
    return run


def test_it_shows_in_the_records_of_all_runs_together(history):
    """The last one alone does not show it."""
    site, runs = history / "nodes" / "a", [history / name for name in ("first", "second", "third")]
    assert json.loads(verify(site, "--server", runs[-1], "--json").out)["held"]
    said = verify(site, *(word for run in runs for word in ("--server", run)))
    assert said.code == 1
    assert "of which its own log shows no plan" in " ".join(said.out.split())


def test_it_shows_by_where_the_server_saw_the_log_before(history, tmp_path):
    """The server tells it when it admits the site: how the log stood after the run that was forgotten."""
    site, seen = history / "nodes" / "a", SignedLog(history / "honest" / "log.sqlite").head.to_text()
    shutil.copytree(history / "third", tmp_path / "third")
    said = verify(site, "--server", anchored(tmp_path / "third", seen))
    assert said.code == 1
    assert "an older copy was put back" in " ".join(said.out.split())


def test_a_log_that_was_not_put_back_shows_where_the_server_saw_it(history, tmp_path):
    """The second run, which a began with the log that the first one had seen."""
    first = SignedLog(history / "old" / "log.sqlite").head.to_text()
    shutil.copytree(history / "honest", tmp_path / "a" / "custody")
    shutil.copytree(history / "second", tmp_path / "second")
    found = json.loads(verify(tmp_path / "a", "--server", anchored(tmp_path / "second", first), "--json").out)
    checks = {check["check"]: check for check in found["checks"] if check["subject"] == "a"}
    assert checks["earlier anchor"]["held"] is True
    both = verify(tmp_path / "a", "--server", history / "first", "--server", history / "second")
    assert both.code == 0
