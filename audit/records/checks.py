"""Outcomes of a verification: the checks and the verdict that follows from all of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of `fedglm audit verify`.

    Attributes:
        subject: Owner of the record: `server`, or the name of a site.
        name: Name of the check.
        passed: True if the record is as it must be; False if it was changed or contradicts itself or another record;
            None if the check cannot be decided.
        detail: Explanation for people; of a failed check it names the entry that is wrong and how it is wrong.
        missing: For an undecided check, whether it is undecided because a file or entry is absent that complete records
            have.
    """

    subject: str
    name: str
    passed: bool | None
    detail: str
    missing: bool = False


class Scope(StrEnum):
    """Which records were verified, and so what a verdict is about."""

    RUN = "run"
    """The server's log and the logs of the sites."""
    SITE_AND_SERVER = "site and server"
    """Records of sites, compared with those of servers."""
    SERVER = "server"
    """The server's records alone, where the sites and their records are elsewhere."""
    SITE = "site"
    """One site's records alone."""
    PROOF = "proof"
    """A proof about a log."""
    REPORT = "report"
    """A bundle for the public, which holds a report and no record."""


class Verdict(StrEnum):
    """The result of all checks together."""

    WHOLE = "whole"
    """Nothing is wrong or missing, and each side's records agree with those of another side."""
    ALONE = "alone"
    """Nothing is wrong or missing in one side's records, which the owner, who holds the key, could have remade."""
    OPEN = "open"
    """Nothing present is wrong, but something is missing that complete records have."""
    WRONG = "wrong"
    """Something was changed, or contradicts itself or another record."""


_ONE_SIDED = (Scope.SERVER, Scope.SITE, Scope.PROOF)


def reach_verdict(checks: Iterable[Check], scope: Scope) -> Verdict:
    """Return the verdict that checks of that scope lead to."""
    checks = list(checks)
    if select_failed(checks):
        return Verdict.WRONG
    if select_missing(checks):
        return Verdict.OPEN
    return Verdict.ALONE if scope in _ONE_SIDED else Verdict.WHOLE


def describe_checks(checks: Sequence[Check]) -> str:
    """Describe in words how many checks passed and how many are undecided."""
    passed, undecided = (sum(check.passed is state for check in checks) for state in (True, None))
    return f"{passed} of {len(checks)} checks hold" + (f", {undecided} cannot be answered" if undecided else "")


def select_failed(checks: Iterable[Check]) -> list[Check]:
    """Return the checks that failed."""
    return [check for check in checks if check.passed is False]


def select_missing(checks: Iterable[Check]) -> list[Check]:
    """Return the checks that are undecided because something is missing."""
    return [check for check in checks if check.passed is None and check.missing]
