"""Untrusted texts, such as those a node sent, made safe for display: on one line, printable, and short.

A terminal executes control characters, and bidirectional marks reorder the displayed text. Texts are cleaned where they
enter the server, and where a file that was written elsewhere is read.
"""

from typing import Final

MAX_CHARACTERS: Final = 500


def clean_text(text: str, max_characters: int = MAX_CHARACTERS) -> str:
    """Replace each unprintable character by a question mark, and truncate the text to `max_characters`."""
    return "".join(character if character.isprintable() else "?" for character in text[:max_characters])
