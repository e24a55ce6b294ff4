"""Results of the checks before a start, for the engineer who can fix a failure; they quote no record."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check.

    Attributes:
        check: Name of the check.
        level: `ok`; `warning` where all works for now; `failure` where the process would not do its work.
        detail: Observation, in words.
        remedy: Action that mends it; empty where none is needed.
        transient: Whether a failure may resolve itself, as a server that is not up yet: no reason not to start.
    """

    check: str
    level: Level
    detail: str
    remedy: str = ""
    transient: bool = False

    @property
    def forbids_start(self) -> bool:
        """Whether the process should not be started."""
        return self.level == "failure" and not self.transient

    def sentence(self, separator: str = "; ") -> str:
        """Return detail and remedy in one line."""
        return separator.join(filter(None, (self.detail, self.remedy)))

    def as_json(self) -> dict[str, object]:
        """Return an object of `fedglm client check --json`; its keys are older than the attributes' names."""
        return {
            "check": self.check,
            "level": self.level,
            "said": self.detail,
            "remedy": self.remedy,
            "passing": self.transient,
        }


def ok(check: str, detail: str) -> Finding:
    """Make the finding of a check that passed."""
    return Finding(check=check, level="ok", detail=detail)


def warning(check: str, detail: str, remedy: str) -> Finding:
    """Make the finding of a process that works for now."""
    return Finding(check=check, level="warning", detail=detail, remedy=remedy)


def failure(check: str, detail: str, remedy: str = "", *, transient: bool = False) -> Finding:
    """Make the finding of a process that would not do its work."""
    return Finding(check=check, level="failure", detail=detail, remedy=remedy, transient=transient)


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that forbid a start."""
    return [finding for finding in findings if finding.forbids_start]
