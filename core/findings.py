"""What a check found, in words for the engineer who can mend it; never a word of what a record says."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of `fedglm client check`.

    Attributes:
        check: What was looked at.
        level: `ok`; `warning` where the node runs all the same; `failure` where it would not do its work.
        said: What was found.
        remedy: What helps; empty where nothing has to be done.
        passing: Whether it may mend itself, as a server that is not up yet: no reason not to start.
    """

    check: str
    level: Level
    said: str
    remedy: str = ""
    passing: bool = False


def ok(check: str, said: str) -> Finding:
    """All is well."""
    return Finding(check=check, level="ok", said=said)


def warning(check: str, said: str, remedy: str) -> Finding:
    """The node runs all the same."""
    return Finding(check=check, level="warning", said=said, remedy=remedy)


def failure(check: str, said: str, remedy: str, *, passing: bool = False) -> Finding:
    """The node would not do its work."""
    return Finding(check=check, level="failure", said=said, remedy=remedy, passing=passing)


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """Those for which a node should not be started."""
    return [finding for finding in findings if finding.level == "failure" and not finding.passing]
