"""What a verification says: checks that hold, that do not, or that nothing can be said about, and what they come to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of `fedglm audit verify`.

    Attributes:
        subject: Whose record: `server`, or a site's name.
        name: What was looked at.
        held: True; False where the record was changed, or contradicts itself or another; None where it does not show.
        said: What was found; where it does not hold, which entry is wrong, and how.
        missing: Of an open one, whether it is open because something is not here that whole records have.
    """

    subject: str
    name: str
    held: bool | None
    said: str
    missing: bool = False


class Scope(StrEnum):
    """What was looked at, and so what a verdict is about."""

    RUN = "run"
    """A server's log, and those of the sites."""
    SITE_AND_SERVER = "site and server"
    """Sites' records, held to the servers'."""
    SERVER = "server"
    """A server's records alone: the sites are elsewhere, and so are theirs."""
    SITE = "site"
    """A site's records alone."""
    PROOF = "proof"
    """A proof about a log."""
    REPORT = "report"
    """A bundle for the public: a report, and no record."""


class Verdict(StrEnum):
    """What all checks come to."""

    WHOLE = "whole"
    """Nothing is wrong, nothing is missing, and each side's records are held to another's."""
    ALONE = "alone"
    """The same of one side's records; its owner, who holds the key, could have made them anew."""
    OPEN = "open"
    """Nothing that is here is wrong, and something is not here that whole records have."""
    WRONG = "wrong"
    """Something was changed, or contradicts itself or another."""


_ALONE = (Scope.SERVER, Scope.SITE, Scope.PROOF)


def verdict(checks: Iterable[Check], scope: Scope) -> Verdict:
    """What checks come to."""
    checks = list(checks)
    if failed(checks):
        return Verdict.WRONG
    if missing(checks):
        return Verdict.OPEN
    return Verdict.ALONE if scope in _ALONE else Verdict.WHOLE


def told(checks: Sequence[Check]) -> str:
    """How many hold, in words."""
    held, open_ = (sum(check.held is state for check in checks) for state in (True, None))
    return f"{held} of {len(checks)} checks hold" + (f", {open_} cannot be answered" if open_ else "")


def failed(checks: Iterable[Check]) -> list[Check]:
    """Those that do not hold."""
    return [check for check in checks if check.held is False]


def missing(checks: Iterable[Check]) -> list[Check]:
    """Those that are open for something that is not here."""
    return [check for check in checks if check.held is None and check.missing]
