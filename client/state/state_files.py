"""The files of a node's state: each whole, its owner's alone, named by its content and, with a vault, encrypted."""

import hashlib
from pathlib import Path

from fedglm.core.files import write_atomically
from fedglm.privacy.keys.vault import MAGIC, Vault

PRIVATE = 0o600
"""Rights of the state's files: a residual holds what was learned from the site's records and has not left yet."""

RECORD = "state.json"
_STALE = ("*.bin", "*.sealed", ".*.bin.*", ".*.sealed.*", f".{RECORD}.*")


class StateFiles:
    """The files in a folder.

    Args:
        folder: Of the state.
        vault: Encrypts what is written; None leaves it as it is.
    """

    def __init__(self, folder: Path, vault: Vault | None) -> None:
        self._folder, self._vault = folder, vault

    def name(self, what: str, content: bytes) -> str:
        """Under which a content is kept."""
        return f"{what}-{hashlib.sha256(content).hexdigest()[:32]}.{'bin' if self._vault is None else 'sealed'}"

    def is_there(self, name: str) -> bool:
        """Whether the folder holds the file."""
        return (self._folder / name).is_file()

    def write(self, name: str, content: bytes) -> None:
        """Write a file, durably and in one step; raises StorageError."""
        sealed = content if self._vault is None else self._vault.seal(name, content)
        write_atomically(self._folder / name, sealed, mode=PRIVATE)

    def read(self, name: str) -> bytes:
        """What `write` was given.

        Raises:
            ValueError, PrivacyError: It is damaged, or sealed by a key that is not here.
            OSError: It cannot be read.
        """
        if "/" in name or not (name == RECORD or name.endswith((".bin", ".sealed"))):
            raise ValueError(f"{name!r} is no file of this state")
        content = (self._folder / name).read_bytes()
        if content.startswith(MAGIC):
            if self._vault is None:
                raise ValueError("it is encrypted, and no key for it is named: see state_key in site.toml")
            content = self._vault.open(name, content)
        if name != RECORD and f"-{hashlib.sha256(content).hexdigest()[:32]}." not in name:
            raise ValueError(f"{name} does not have the content it was written with")
        return content

    def remove_others(self, names: set[str]) -> None:
        """Remove vectors that nothing names, and temporary files: a killed node leaves them."""
        for pattern in _STALE:
            for stale in self._folder.glob(pattern):
                if stale.name not in names:
                    stale.unlink(missing_ok=True)
