"""Files and folders for their owner only: private keys, their passphrases, and folders of records and state."""

import os
import stat
from pathlib import Path

from fedglm.core.files import storage_errors
from fedglm.privacy.errors import PrivacyError

_MAX_BYTES = 8192  # an encrypted key in PEM has about 500


def read_private_file(path: Path, *, remedy: str = "make a new key") -> bytes:
    """Read a file that only its owner may read or write; the permissions are checked on the opened file.

    Args:
        path: The file.
        remedy: Remedy where others may have read it already.

    Raises:
        PrivacyError: It cannot be read, is no regular file, or others than its owner may use it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a pipe would block
    except OSError as exc:
        raise PrivacyError(f"cannot read the key {path}: {exc.strerror}") from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PrivacyError(f"{path} is no plain file, so no key")
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            raise PrivacyError(
                f"others than its owner may use the key {path} (rights {mode:04o}): if nobody has, run "
                f"chmod 600 {path}; else {remedy}"
            )
        return os.read(descriptor, _MAX_BYTES)
    finally:
        os.close(descriptor)


def make_private_folder(path: Path) -> None:
    """Make a folder for its owner only; in an existing one, remove the permissions of others.

    Raises:
        PrivacyError: Others may look into the folder, and that cannot be changed.
        StorageError: The folder cannot be made.
    """
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        try:
            path.chmod(mode & 0o700)
        except OSError as exc:
            raise PrivacyError(
                f"others than its owner may look into {path} (rights {mode:04o}), and that cannot be changed here "
                f"({exc.strerror}): its owner runs chmod 700 {path}"
            ) from exc
