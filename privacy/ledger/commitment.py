"""A keyed commitment to the content of a data set, which only the site can compute or check.

The ledger finds the history of a data set by it, whatever the data set is called. It is keyed with a salt that stays at
the site: without the salt, a reader of the ledger cannot test whether a certain record, or a certain file, is the
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
"""A field of a record: bytes, text, an integer, or an array of numbers."""


def compute_commitment(records: Iterable[Iterable[Field]], salt: bytes) -> str:
    """Compute the commitment to the records of a data set, in any order; duplicates count.

    It is the HMAC-SHA256 of the sorted HMAC-SHA256s of the records. A field is encoded with its kind and length, an
    array also with its dtype and shape, its numbers in little-endian order: records with other boundaries between their
    fields differ.

    Args:
        records: The records, each as its fields: tokens or features, label, name of the unit.
        salt: Salt of the site, see `load_salt`, 32 bytes.

    Returns:
        The commitment, 64 hexadecimal digits.

    Raises:
        PrivacyError: The salt has another length, or a field is of another type.
    """
    if len(salt) != SALT_BYTES:
        raise PrivacyError(f"the salt of a commitment has {SALT_BYTES} bytes, not {len(salt)}")
    digests = sorted(
        _compute_hmac(salt, b"fedglm/record/1", (_encode_field(field) for field in record)) for record in records
    )
    return _compute_hmac(salt, b"fedglm/data-set/1", digests).hex()


def load_salt(path: Path) -> bytes:
    """Load the site's salt from the file at `path`; the first call creates it, readable by its owner only.

    If the salt is lost, no charge is forgotten: a data set is also found by its name.

    Returns:
        The salt, 32 bytes.

    Raises:
        PrivacyError: The file has another length.
        StorageError: The file cannot be read or written.
    """
    with storage_errors(path):
        if not path.exists():
            with contextlib.suppress(FileExistsError):  # when two processes create it, both use the first one's
                create_privately(path, os.urandom(SALT_BYTES))
        salt = path.read_bytes()
    if len(salt) != SALT_BYTES:
        raise PrivacyError(f"{path} holds {len(salt)} bytes, a salt has {SALT_BYTES}: is it the right file?")
    return salt


def _compute_hmac(salt: bytes, purpose: bytes, parts: Iterable[bytes]) -> bytes:
    code = hmac.new(salt, _prefix_length(purpose), hashlib.sha256)
    for part in parts:
        code.update(_prefix_length(part))
    return code.digest()


def _encode_field(field: Field) -> bytes:
    if isinstance(field, bytes):
        return b"b" + field
    if isinstance(field, str):
        return b"s" + field.encode("utf-8", "surrogatepass")
    if isinstance(field, int):
        return b"i%d" % field
    if isinstance(field, np.ndarray) and field.dtype.kind in "biuf":
        little = np.ascontiguousarray(field, field.dtype.newbyteorder("<"))
        return b"a" + _prefix_length(f"{little.dtype.str}{field.shape}".encode()) + little.tobytes()
    raise PrivacyError(
        f"a field of a record is bytes, a text, a whole number or an array of numbers, not {type(field)}"
    )


def _prefix_length(part: bytes) -> bytes:
    return len(part).to_bytes(8, "little") + part
