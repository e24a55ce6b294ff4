"""A stranger's bundle, unpacked to be read: nothing of it takes more memory or disk than records do.

All sizes that an archive declares are held to `bundle_contents` before any of it is unpacked, and no file gets longer
than it declares.
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

_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, TypeError),
    *(RuntimeError, RecursionError, NotImplementedError),
)
_SIGNATURE_BYTES: Final = 128
_PIECE: Final = 2**20


@dataclass(frozen=True)
class Bundle:
    """A bundle that was unpacked.

    Attributes:
        folder: Where to; it is gone after the block.
        role: Whom it is for.
        key: By which it says that it is signed.
        checks: Whether it is as it was signed.
    """

    folder: Path
    role: str
    key: PublicKey
    checks: list[Check]


@contextmanager
def unpacked(path: Path) -> Iterator[Bundle]:
    """Unpack a stranger's bundle into a folder that is gone after the block.

    Raises:
        PrivacyError: It is no bundle, or holds more than one may, or more than the disk has room for.
    """
    with TemporaryDirectory(prefix="fedglm-bundle-") as name:
        try:
            with _Shallow(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
                bundle = _unpack(archive, path.stat().st_size, Path(name))
        except PrivacyError as exc:
            raise PrivacyError(f"{path} is not unpacked: {exc}") from exc
        except _BROKEN as exc:
            raise PrivacyError(f"{path} is no bundle of fedglm audit export: {exc}") from exc
        yield bundle


class _Shallow(io.BufferedReader):
    """A file of which no long piece is read at once: `zipfile` would take a list of files of any length."""

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = MAX_LISTED + 1 if size is None or size < 0 else size
        if wanted > MAX_LISTED + 1:
            raise ValueError(f"its list of files is longer than {MAX_LISTED:,} bytes")
        found = super().read(wanted)
        if len(found) > MAX_LISTED:
            raise ValueError(f"its end is longer than {MAX_LISTED:,} bytes")
        return found


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
    _check_room(sum(sizes.values()))
    wrong = sorted(entries.keys() ^ files.keys())
    for name in sorted(entries.keys() & files.keys()):
        if _digest(archive, entries[name], folder / name) != files[name]:
            wrong.append(name)
    if not key.verify(CONTEXT, raw, bytes.fromhex(archive.read(signature).decode())):
        checks = [Check(subject="bundle", name="signature", held=False, said=f"{MANIFEST} is not signed by its key")]
    elif wrong:
        said = f"{wrong[0]} is not what was signed ({len(wrong)} files)"
        checks = [Check(subject="bundle", name="files", held=False, said=said)]
    else:
        said = f"{len(files)} files for the role {role}, signed by {key.fingerprint()}"
        checks = [Check(subject="bundle", name="files", held=True, said=said)]
    logs = [name.removesuffix(LOG) for name in files if name.endswith(f"/{LOG}")]
    for place in [place for place in logs if place + LINES not in files]:
        said = f"{place}{LINES} is not here, which each bundle has beside a log"
        checks.append(Check(subject="bundle", name="lines", held=None, said=said, missing=True))
    return Bundle(folder, role, key, checks)


def _check_room(needed: int) -> None:
    free = shutil.disk_usage(gettempdir()).free
    if needed > free:
        raise PrivacyError(
            f"that takes {needed:,} bytes of {gettempdir()}, which has {free:,}; TMPDIR may name a folder with more"
        )


def _digest(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> str:
    """Unpack a file; returns its SHA-256 (hex)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with archive.open(entry) as packed, target.open("xb") as file:  # not longer than it declares, and no piece is long
        while piece := packed.read(_PIECE):
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()
