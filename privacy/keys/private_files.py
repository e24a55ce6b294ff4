"""What only its owner may look at: private keys, the passphrases that lock them, and folders of records and state."""

import os
import stat
from pathlib import Path

from fedglm.core.files import storage_errors
from fedglm.privacy.errors import PrivacyError

_MAX_BYTES = 8192  # PEM of a locked key needs about 500


def read_privately(path: Path) -> bytes:
    """The content of a file that nobody but its owner may read or write; rights are those of the file opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a pipe would wait for ever
    except OSError as exc:
        raise PrivacyError(f"cannot read the key {path}: {exc.strerror}") from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PrivacyError(f"{path} is no plain file, so no key")
        rights = stat.S_IMODE(status.st_mode)
        if rights & 0o077:
            raise PrivacyError(
                f"others than its owner may use the key {path} (rights {rights:04o}): if nobody has, run "
                f"chmod 600 {path}; else make a new key"
            )
        return os.read(descriptor, _MAX_BYTES)
    finally:
        os.close(descriptor)


def private_folder(path: Path) -> None:
    """Make a folder for its owner alone, or take the rights that others have from one that is there.

    Raises:
        PrivacyError: Others may look into it, and that cannot be changed.
        StorageError: It cannot be made.
    """
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    rights = stat.S_IMODE(path.stat().st_mode)
    if rights & 0o077:
        try:
            path.chmod(rights & 0o700)
        except OSError as exc:
            raise PrivacyError(
                f"others than its owner may look into {path} (rights {rights:04o}), and that cannot be changed here "
                f"({exc.strerror}): its owner runs chmod 700 {path}"
            ) from exc
