"""Suggestions for an unknown name: the most similar names, or all."""

import difflib
from collections.abc import Iterable


def find_near_names(name: str, known: Iterable[str], *, count: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return the names most similar to `name`, the most similar first.

    Args:
        name: The unknown name.
        known: All valid names.
        count: Maximum number of names.
        cutoff: Minimum similarity from 0 (any) to 1 (equal), as in `difflib.get_close_matches`.
    """
    return difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question with the near names, or all where none is near; for fedglm's own names, as keys and codecs."""
    names = list(known)
    return f"did you mean {' or '.join(find_near_names(name, names) or names)}?" if names else "it has none"


def list_choices(name: str, known: Iterable[str]) -> str:
    """Return a question with the near names, then all names; quoted, since users chose them: fields of a table, say."""
    names = list(known)
    near = find_near_names(name, names, count=2)
    question = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{question}there are: {', '.join(names)}"
