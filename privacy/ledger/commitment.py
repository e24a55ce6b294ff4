"""A name for the content of a data set that nobody but the site can make or check.

The ledger finds the history of a data set by it, whatever the data set is called. It is keyed with a salt that stays at
the site: without the salt, who reads a ledger cannot try out whether a certain record, or a certain file, is the
content.
"""

import contextlib
import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedglm.core.files import create_privately, storage_errors
from fedglm.privacy.errors import PrivacyError

SALT_BYTES: Final = 32

Field = bytes | str | int | npt.NDArray[Any]
"""A part of a record: bytes, a text, a whole number, or an array of numbers."""


def commitment(records: Iterable[Iterable[Field]], salt: bytes) -> str:
    """Commit to the records of a data set, in whatever order they come; one that comes twice counts twice.

    HMAC-SHA256 of the sorted HMAC-SHA256s of the records. A field goes in with its kind and its length, an array also
    with its dtype and shape, its numbers in little-endian order: other bounds between fields are another record.

    Args:
        records: Each the fields of one record: its tokens or features, its label, the name of its unit.
        salt: What `site_salt` gives.

    Returns:
        64 hexadecimal digits.

    Raises:
        PrivacyError: The salt is no 32 bytes, or a field is of another kind.
    """
    if len(salt) != SALT_BYTES:
        raise PrivacyError(f"the salt of a commitment has {SALT_BYTES} bytes, not {len(salt)}")
    digests = sorted(_keyed(salt, b"fedglm/record/1", (_packed(field) for field in record)) for record in records)
    return _keyed(salt, b"fedglm/data-set/1", digests).hex()


def site_salt(path: Path) -> bytes:
    """The salt in the file at `path`; the first call makes it, readable by its owner alone.

    Losing it loses no budget: a data set is also found by its name.

    Raises:
        PrivacyError: The file holds something else.
        StorageError: The file cannot be read or written.
    """
    with storage_errors(path):
        if not path.exists():
            with contextlib.suppress(FileExistsError):  # of two that create it, both go on with the first one's
                create_privately(path, os.urandom(SALT_BYTES))
        salt = path.read_bytes()
    if len(salt) != SALT_BYTES:
        raise PrivacyError(f"{path} holds {len(salt)} bytes, a salt has {SALT_BYTES}: is it the right file?")
    return salt


def _keyed(salt: bytes, purpose: bytes, parts: Iterable[bytes]) -> bytes:
    code = hmac.new(salt, _sized(purpose), hashlib.sha256)
    for part in parts:
        code.update(_sized(part))
    return code.digest()


def _packed(field: Field) -> bytes:
    if isinstance(field, bytes):
        return b"b" + field
    if isinstance(field, str):
        return b"s" + field.encode("utf-8", "surrogatepass")
    if isinstance(field, int):
        return b"i%d" % field
    if isinstance(field, np.ndarray) and field.dtype.kind in "biuf":
        little = np.ascontiguousarray(field, field.dtype.newbyteorder("<"))
        return b"a" + _sized(f"{little.dtype.str}{field.shape}".encode()) + little.tobytes()
    raise PrivacyError(
        f"a field of a record is bytes, a text, a whole number or an array of numbers, not {type(field)}"
    )


def _sized(part: bytes) -> bytes:
    return len(part).to_bytes(8, "little") + part
