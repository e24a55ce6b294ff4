"""Files of a node's state: written atomically, readable by their owner alone, named by the hash of their content.

With a vault they are encrypted.
"""

import hashlib
from pathlib import Path

from fedglm.core.files import write_atomically
from fedglm.privacy.keys.vault import MAGIC, Vault

PRIVATE = 0o600
"""File mode: a residual holds information from the site's records that has not left yet."""

RECORD = "state.json"
"""Name of the file that names the vectors; replacing it commits a state."""

_STALE = ("*.bin", "*.sealed", ".*.bin.*", ".*.sealed.*", f".{RECORD}.*")


class StateFiles:
    """The files in the folder of a state.

    Args:
        folder: Folder of the state.
        vault: Encrypts what is written; None writes it unencrypted.
    """

    def __init__(self, folder: Path, vault: Vault | None) -> None:
        self._folder, self._vault = folder, vault

    def make_name(self, kind: str, content: bytes) -> str:
        """Return the file name of a content: its kind and hash."""
        return f"{kind}-{hashlib.sha256(content).hexdigest()[:32]}.{'bin' if self._vault is None else 'sealed'}"

    def exists(self, name: str) -> bool:
        """Return whether the folder holds the file."""
        return (self._folder / name).is_file()

    def write(self, name: str, content: bytes) -> None:
        """Write a file durably and atomically.

        Raises:
            StorageError: The disk is full or cannot be written.
        """
        sealed = content if self._vault is None else self._vault.seal(name, content)
        write_atomically(self._folder / name, sealed, mode=PRIVATE)

    def read(self, name: str) -> bytes:
        """Read and decrypt a file, and check its content against its name.

        Raises:
            ValueError, PrivacyError: The file is damaged, or encrypted with a key that is not here.
            OSError: The file cannot be read.
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

    def remove_all_except(self, names: set[str]) -> None:
        """Remove vectors that are not in `names`, and temporary files, which a killed node leaves."""
        for pattern in _STALE:
            for stale in self._folder.glob(pattern):
                if stale.name not in names:
                    stale.unlink(missing_ok=True)
