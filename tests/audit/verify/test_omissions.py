"""Records that are left out, emptied or replaced as a whole are never verified as whole."""

import pytest
from omitted_records import Omission, Runs, key_of, omissions

from fedglm.audit.records.checks import Scope, Verdict
from fedglm.audit.verify.verification import verify
from fedglm.privacy.errors import PrivacyError

pytestmark = pytest.mark.usefixtures("unsynced")

GOOD = (Verdict.WHOLE, Verdict.ALONE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs.make(tmp_path_factory.mktemp("omitted"))


def list_accepted(chosen: list[Omission], work) -> list[str]:
    """Return the omissions after which the records still seem good."""
    accepted = []
    for number, omission in enumerate(chosen):
        (work / str(number)).mkdir()
        try:
            verdict = omission.look(work / str(number)).verdict
        except PrivacyError:  # exit code 2: it is not looked at
            continue
        accepted += [f"{omission.name}: {verdict}"] if verdict in GOOD else []
    return accepted


def test_what_nobody_touched_is_good(runs):
    for folder in (runs.run, runs.other, runs.strange):
        verification = verify(folder)
        assert (verification.verdict, verification.scope) == (Verdict.WHOLE, Scope.RUN)
    site = runs.run / "nodes" / "a"
    alone, against = verify(site, keys=[key_of(runs.run, "a")]), verify(site, server=runs.run)
    assert (alone.verdict, alone.scope) == (Verdict.ALONE, Scope.SITE)
    assert (against.verdict, against.scope) == (Verdict.WHOLE, Scope.SITE_AND_SERVER)


def test_what_is_left_out_or_replaced_is_never_whole(runs, tmp_path):
    """Each twentieth of all, so that each kind is among them."""
    chosen = omissions(runs)[::20]
    assert list_accepted(chosen, tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_whatever_is_left_out_or_replaced_is_never_whole(runs, tmp_path):
    chosen = omissions(runs)
    print(f"{len(chosen)} omissions")
    assert len(chosen) >= 200
    assert list_accepted(chosen, tmp_path) == []
