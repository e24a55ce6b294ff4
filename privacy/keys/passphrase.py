"""The passphrase of this machine's private keys, where they are encrypted with one.

It comes from the file that FEDGLM_PASSPHRASE_FILE names (as from systemd's credentials), from FEDGLM_PASSPHRASE, or
from the person at the terminal, if the command has set a prompt.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.private_files import read_private_file

VARIABLE: Final = "FEDGLM_PASSPHRASE"
FILE_VARIABLE: Final = "FEDGLM_PASSPHRASE_FILE"

_prompts: list[Callable[[Path], str]] = []  # the one that is set, or none


def set_prompt(prompt: Callable[[Path], str]) -> None:
    """Set how to ask a person for the passphrase; see `read_or_prompt`.

    Args:
        prompt: Takes the path of an encrypted key, returns the typed passphrase.
    """
    _prompts[:] = [prompt]


def read_environment() -> str | None:
    """Read the passphrase from the environment; None where there is none.

    Raises:
        PrivacyError: The file that the environment names cannot be read, or others may read it.
    """
    if named := os.environ.get(FILE_VARIABLE):
        return read_private_file(Path(named)).decode(errors="replace").rstrip("\r\n")
    return os.environ.get(VARIABLE)


def read_or_prompt(prompt: Callable[[], str]) -> str:
    """Read the passphrase from the environment, or prompt for it.

    A typed passphrase is kept in the environment, for the processes that this one starts.
    """
    passphrase = read_environment()
    if passphrase is None:
        passphrase = os.environ[VARIABLE] = prompt()
    return passphrase


def get_passphrase(path: Path) -> str:
    """Return the passphrase of an encrypted key.

    Args:
        path: Path of the key's file.

    Raises:
        PrivacyError: Neither the environment nor a prompt gives one.
    """
    if read_environment() is None and not _prompts:
        raise PrivacyError(
            f"the key {path} is locked with a passphrase: put that into a file of your own and name it in "
            f"{FILE_VARIABLE}"
        )
    return read_or_prompt(lambda: _prompts[0](path))
