"""Unpacks a stranger's bundle for reading; nothing in it can take more memory or disk than records do.

All sizes that an archive declares are checked against `contents` before any of it is unpacked, and no file grows beyond
its declared size.
"""

import hashlib
import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Final

from fedglm.audit.bundle.contents import MANIFEST, MAX_LISTED, ROLES, SIGNATURE, check_name, check_sizes
from fedglm.audit.records.checks import Check
from fedglm.audit.records.log_lines import LINES
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.log.signed_log import LOG

CONTEXT: Final = "fedglm/bundle/1"

_MALFORMED = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, TypeError),
    *(RuntimeError, RecursionError, NotImplementedError),
)
_SIGNATURE_BYTES: Final = 128
_CHUNK: Final = 2**20


@dataclass(frozen=True)
class Bundle:
    """A bundle that was unpacked.

    Attributes:
        folder: Folder with its files; it is deleted after the block.
        role: Role that it was made for.
        key: Key that it says it is signed with.
        checks: Checks that the files are those that were signed.
    """

    folder: Path
    role: str
    key: PublicKey
    checks: list[Check]


@contextmanager
def unpack_bundle(path: Path) -> Iterator[Bundle]:
    """Unpack a stranger's bundle into a folder that is deleted after the block.

    Args:
        path: Path of the archive.

    Yields:
        The bundle.

    Raises:
        PrivacyError: It is no bundle, contains more than a bundle may, or more than the disk has room for.
    """
    with TemporaryDirectory(prefix="fedglm-bundle-") as name:
        try:
            with _BoundedReader(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
                bundle = _unpack(archive, path.stat().st_size, Path(name))
        except PrivacyError as exc:
            raise PrivacyError(f"{path} is not unpacked: {exc}") from exc
        except _MALFORMED as exc:
            raise PrivacyError(f"{path} is no bundle of fedglm audit export: {exc}") from exc
        yield bundle


class _BoundedReader(io.BufferedReader):
    """A file that refuses long reads: `zipfile` would read a list of files of any length into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = MAX_LISTED + 1 if size is None or size < 0 else size
        if wanted > MAX_LISTED + 1:
            raise ValueError(f"its list of files is longer than {MAX_LISTED:,} bytes")
        content = super().read(wanted)
        if len(content) > MAX_LISTED:
            raise ValueError(f"its end is longer than {MAX_LISTED:,} bytes")
        return content


def _unpack(archive: zipfile.ZipFile, size: int, folder: Path) -> Bundle:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise PrivacyError("the bundle holds a file twice")
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries.values()):
        raise PrivacyError("the bundle is compressed as none of ours is")
    signature, listed = entries.pop(SIGNATURE), entries.pop(MANIFEST)
    if listed.file_size > MAX_LISTED or signature.file_size != _SIGNATURE_BYTES:
        raise PrivacyError(f"the bundle's {MANIFEST} is longer than any is, or its signature is none")
    raw = archive.read(listed)
    manifest: Any = json.loads(raw)
    key, files, role = PublicKey.from_hex(manifest["key"]), dict(manifest["files"]), manifest["role"]
    if type(role) is not str or role not in ROLES:
        raise PrivacyError(f"the bundle is for no role that there is; they are {', '.join(ROLES)}")
    for name in sorted(entries.keys() | files.keys()):
        check_name(name, role)
    sizes = {name: entry.file_size for name, entry in entries.items()}
    check_sizes(sizes, size)
    _check_free_space(sum(sizes.values()))
    wrong = sorted(entries.keys() ^ files.keys())
    for name in sorted(entries.keys() & files.keys()):
        if _extract(archive, entries[name], folder / name) != files[name]:
            wrong.append(name)
    if not key.verify(CONTEXT, raw, bytes.fromhex(archive.read(signature).decode())):
        checks = [
            Check(subject="bundle", name="signature", passed=False, detail=f"{MANIFEST} is not signed by its key")
        ]
    elif wrong:
        detail = f"{wrong[0]} is not what was signed ({len(wrong)} files)"
        checks = [Check(subject="bundle", name="files", passed=False, detail=detail)]
    else:
        detail = f"{len(files)} files for the role {role}, signed by {key.fingerprint()}"
        checks = [Check(subject="bundle", name="files", passed=True, detail=detail)]
    logs = [name.removesuffix(LOG) for name in files if name.endswith(f"/{LOG}")]
    for place in [place for place in logs if place + LINES not in files]:
        detail = f"{place}{LINES} is not here, which each bundle has beside a log"
        checks.append(Check(subject="bundle", name="lines", passed=None, detail=detail, missing=True))
    return Bundle(folder, role, key, checks)


def _check_free_space(needed: int) -> None:
    free = shutil.disk_usage(gettempdir()).free
    if needed > free:
        raise PrivacyError(
            f"that takes {needed:,} bytes of {gettempdir()}, which has {free:,}; TMPDIR may name a folder with more"
        )


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> str:
    """Unpack one file.

    Returns:
        Its SHA-256, hex.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with archive.open(entry) as packed, target.open("xb") as file:  # no longer than it declares, in short reads
        while piece := packed.read(_CHUNK):
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()
