"""Words that a node sent, before anybody reads them: on one line, printable, and short.

A terminal obeys control characters, and marks of writing direction turn what is read around. Texts are cleaned where
they enter the server, and where a file that was written elsewhere is read.
"""

from typing import Final

MAX_CHARACTERS: Final = 500


def cleaned(text: str, longest: int = MAX_CHARACTERS) -> str:
    """The text with a question mark for each character that is not printable, cut to `longest` characters."""
    return "".join(character if character.isprintable() else "?" for character in text[:longest])
