"""Suggestions after a name that is unknown: the names it is most like, or all that there are."""

import difflib
from collections.abc import Iterable


def near_names(name: str, known: Iterable[str], *, count: int = 3, cutoff: float = 0.6) -> list[str]:
    """Names most like `name`, the likest first.

    Args:
        name: What was given.
        known: All names there are.
        count: At most how many.
        cutoff: Least likeness from 0 (take any) to 1 (the same), as of `difflib.get_close_matches`.
    """
    return difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question for the near names, or for all where none is near; for names of ours, such as keys and codecs."""
    names = list(known)
    return f"did you mean {' or '.join(near_names(name, names) or names)}?" if names else "it has none"


def list_choices(name: str, known: Iterable[str]) -> str:
    """The near names, then all of them; quoted, for others gave them: fields of a table, say."""
    names = list(known)
    near = near_names(name, names, count=2)
    question = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{question}there are: {', '.join(names)}"
