"""The passphrase of this machine's private keys, where they are locked with one.

It comes from the file that FEDGLM_PASSPHRASE_FILE names (as from systemd's credentials), from FEDGLM_PASSPHRASE, or
from whoever sits there, if the command has said how to ask.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.private_files import read_privately

VARIABLE: Final = "FEDGLM_PASSPHRASE"
FILE_VARIABLE: Final = "FEDGLM_PASSPHRASE_FILE"

_asking: list[Callable[[Path], str]] = []


def ask_with(ask: Callable[[Path], str]) -> None:
    """Let a person type it; see `given_or`.

    Args:
        ask: Given the path of a locked key, returns what was typed.
    """
    _asking[:] = [ask]


def given() -> str | None:
    """What the environment says; None where it says nothing.

    Raises:
        PrivacyError: The file that it names cannot be read, or others may read it.
    """
    if named := os.environ.get(FILE_VARIABLE):
        return read_privately(Path(named)).decode(errors="replace").rstrip("\r\n")
    return os.environ.get(VARIABLE)


def given_or(ask: Callable[[], str]) -> str:
    """What the environment says, or else what is typed, which stays there for what this process starts."""
    found = given()
    if found is None:
        found = os.environ[VARIABLE] = ask()
    return found


def passphrase_of(path: Path) -> str:
    """The passphrase of a locked key.

    Args:
        path: Of the key's file.

    Raises:
        PrivacyError: Nobody gives it.
    """
    if given() is None and not _asking:
        raise PrivacyError(
            f"the key {path} is locked with a passphrase: put that into a file of your own and name it in "
            f"{FILE_VARIABLE}"
        )
    return given_or(lambda: _asking[0](path))
