"""What a verification says: checks that hold, that do not, or that nothing can be said about."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of `fedglm audit verify`.

    Attributes:
        subject: Whose record: `server`, or a site's name.
        name: What was looked at.
        held: True; False where the record was changed, or contradicts itself or another; None where it does not show.
        said: What was found; where it does not hold, which entry is wrong, and how.
    """

    subject: str
    name: str
    held: bool | None
    said: str


def told(checks: Sequence[Check]) -> str:
    """How many hold, in words."""
    held, open_ = (sum(check.held is state for check in checks) for state in (True, None))
    return f"{held} of {len(checks)} checks hold" + (f", {open_} cannot be answered" if open_ else "")


def failed(checks: Iterable[Check]) -> list[Check]:
    """Those that do not hold."""
    return [check for check in checks if check.held is False]
