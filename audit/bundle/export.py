"""Writes a bundle of records for another party: one signed archive, which `fedglm audit verify` accepts like a folder.

`contents` lists what is in it, and `untrusted_bundle` unpacks it.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fedglm.audit.bundle.contents import MANIFEST, ROLES, SIGNATURE, check_sizes, get_max_bytes
from fedglm.audit.bundle.untrusted_bundle import CONTEXT
from fedglm.audit.records.log_lines import LINES
from fedglm.audit.records.proofs import read_sound_log
from fedglm.audit.records.snapshot import read_snapshot, snapshot
from fedglm.core.canonical_json import canonical_json
from fedglm.core.files import write_atomically
from fedglm.core.untrusted_files import check_regular, read_regular
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.chained_file import utc_now
from fedglm.privacy.log.signed_log import LOG


def export_bundle(folder: Path, out: Path, role: str, key: SigningKey) -> list[str]:
    """Write the bundle of a run's folder or a site's.

    Args:
        folder: Folder with the records.
        out: Path of the archive; an existing one is replaced atomically.
        role: One of `ROLES`.
        key: Key that signs the list of all files: that of the records' owner, or else every reader must be told whose
            it is.

    Returns:
        Names of the files in the bundle.

    Raises:
        PrivacyError: There is nothing to export, a log is damaged, or a file is a link, a pipe or too long.
        StorageError: The archive cannot be written.
    """
    paths = sorted({path for pattern in ROLES[role] for path in folder.glob(pattern)})
    if not paths:
        raise PrivacyError(f"{folder} holds nothing for the role {role}: fedglm audit report makes the report")
    for path in paths:
        _check_not_linked(path, folder)
    contents: dict[str, bytes] = {}
    # Logs before ledgers: a node that writes meanwhile charges before it logs, and another charge is no fault.
    for path in sorted(paths, key=lambda path: path.name != LOG):
        contents |= {path.relative_to(folder).with_name(name).as_posix(): text for name, text in _read_contents(path)}
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    manifest = canonical_json({"made": utc_now(), "role": role, "key": key.public.hex, "files": files})
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


def _check_not_linked(path: Path, folder: Path) -> None:
    """Refuse a link, which could bring a key into an archive, and whatever is no regular file."""
    if path.resolve() != folder.resolve() / path.relative_to(folder):
        raise PrivacyError(f"{path} is a link, or lies behind one: only what is in {folder} itself is exported")
    try:
        check_regular(path)
    except OSError as exc:
        raise PrivacyError(f"{path} is not exported: {exc.strerror}") from exc


def _read_contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of what an archive contains for a file; nothing on the disk is changed."""
    if path.name == LOG:
        with snapshot(path) as copy:
            log, _ = read_sound_log(copy, path)
            yield path.name, copy.read_bytes()
            # For people and other tools; what is verified is the file itself.
            yield path.with_name(LINES).name, b"".join(text + b"\n" for text in log.read_texts())
    else:
        yield path.name, read_snapshot(path) if path.suffix == ".sqlite" else _read_file(path)


def _read_file(path: Path) -> bytes:
    try:
        return read_regular(path, get_max_bytes(path.name))
    except OSError as exc:
        raise PrivacyError(f"{path} cannot be read: {exc.strerror}") from exc
