"""A bundle of records for somebody else: one signed archive, which `fedglm audit verify` takes as it takes a folder.

`bundle_contents` says what is in it, and `opened_bundle` takes one apart.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fedglm.audit.bundle.contents import MANIFEST, ROLES, SIGNATURE, check_sizes, max_of
from fedglm.audit.bundle.untrusted_bundle import CONTEXT, unpacked
from fedglm.audit.records.log_lines import LINES
from fedglm.audit.records.proofs import sound_log
from fedglm.audit.records.snapshot import content_of, snapshot
from fedglm.core.canonical_json import canonical_json
from fedglm.core.files import write_atomically
from fedglm.core.untrusted_files import check_regular, read_regular
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.chained_file import now
from fedglm.privacy.log.signed_log import LOG

__all__ = ["MANIFEST", "ROLES", "SIGNATURE", "export", "unpacked"]


def export(folder: Path, out: Path, role: str, key: SigningKey) -> list[str]:
    """Write the bundle of a run's folder, or a site's.

    Args:
        folder: Of the records.
        out: The archive; it is replaced in one step.
        role: One of `ROLES`.
        key: Signs the list of all files: the owner's of the records, or whoever reads it must be told whose it is.

    Returns:
        Names of the files in it.

    Raises:
        PrivacyError: There is nothing to export, a log is damaged, or a file is a link, a pipe or too long.
        StorageError: The archive cannot be written.
    """
    found = sorted({path for pattern in ROLES[role] for path in folder.glob(pattern)})
    if not found:
        raise PrivacyError(f"{folder} holds nothing for the role {role}: fedglm audit report makes the report")
    for path in found:
        _check_own(path, folder)
    contents: dict[str, bytes] = {}
    # The logs before the ledgers: a node that writes meanwhile charges before it logs, and one charge more is no fault.
    for path in sorted(found, key=lambda path: path.name != LOG):
        contents |= {path.relative_to(folder).with_name(name).as_posix(): text for name, text in _contents(path)}
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    manifest = canonical_json({"made": now(), "role": role, "key": key.public.hex, "files": files})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bundle:
        signed = {MANIFEST: manifest, SIGNATURE: key.sign(CONTEXT, manifest).hex().encode()}
        for name, content in sorted({**contents, **signed}.items()):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o600 << 16
            bundle.writestr(entry, content, zipfile.ZIP_DEFLATED)
    try:
        check_sizes({name: len(content) for name, content in contents.items()}, len(archive.getbuffer()))
    except PrivacyError as exc:
        raise PrivacyError(f"{folder} is not exported, for nobody would read it: {exc}; hand over the folder") from exc
    write_atomically(out, archive.getvalue(), mode=0o600)
    return sorted(files)


def _check_own(path: Path, folder: Path) -> None:
    """A link could bring a key into an archive."""
    if path.resolve() != folder.resolve() / path.relative_to(folder):
        raise PrivacyError(f"{path} is a link, or lies behind one: only what is in {folder} itself is exported")
    try:
        check_regular(path)
    except OSError as exc:
        raise PrivacyError(f"{path} is not exported: {exc.strerror}") from exc


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of what an archive holds for a file; no byte of the file itself, or beside it, is changed."""
    if path.name == LOG:
        with snapshot(path) as copy:
            log, _ = sound_log(copy, path)
            yield path.name, copy.read_bytes()
            # For people and other tools; what is verified is the file itself.
            yield path.with_name(LINES).name, b"".join(text + b"\n" for text in log.texts())
    else:
        yield path.name, content_of(path) if path.suffix == ".sqlite" else _read(path)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, max_of(path.name))
    except OSError as exc:
        raise PrivacyError(f"{path} cannot be read: {exc.strerror}") from exc
