"""A bundle of records for somebody else: one signed archive, which `fedglm audit verify` takes as it takes a folder.

What a bundle holds is listed here, by role; nothing else ever gets in, no key, no salt, no state and no model. Each
file is in it whole: records that were left out or shortened would prove nothing.

    regulator   all records, and why things were refused, in words
    auditor     all records
    public      the report alone
"""

import hashlib
import io
import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from fedglm.privacy.audit_checks import Check
from fedglm.privacy.canonical import canonical_json
from fedglm.privacy.chained_file import now
from fedglm.privacy.durable import write_atomically
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys import PublicKey, SigningKey
from fedglm.privacy.proofs import sound_log
from fedglm.privacy.regular import check_regular, read_regular
from fedglm.privacy.signed_log import LOG
from fedglm.privacy.snapshot import content_of, snapshot

MANIFEST, SIGNATURE = "MANIFEST.json", "MANIFEST.sig"

_CONTEXT = "fedglm/bundle/1"
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, TypeError),
    *(RuntimeError, RecursionError, NotImplementedError),
)
_MOST_BYTES: Final = 4 * 2**30
_MOST_FILES: Final = 100_000
_MOST_LISTED: Final = 64 * 2**20
_REPORT: Final = ("audit/report.html", "audit/report.json")
_CUSTODY: Final = ("log.sqlite", "ledger.sqlite", "policy.toml", "policy.toml.sig")
_WORDS: Final = ("refusals.jsonl", "refusals.counts.json")
_RECORDS: Final = (
    *_REPORT, "audit/log.sqlite", "audit/canaries.json", "audit/attack.json", "rounds.jsonl", "summary.json",
    "done.json", "scenario.toml",
    *(f"nodes/*/custody/{name}" for name in _CUSTODY), *(f"custody/{name}" for name in _CUSTODY),
)  # fmt: skip
ROLES: Final[dict[str, tuple[str, ...]]] = {
    "regulator": (*_RECORDS, *(f"{place}{name}" for place in ("nodes/*/custody/", "custody/") for name in _WORDS)),
    "auditor": _RECORDS,
    "public": _REPORT,
}
"""Who may read what: patterns of paths in a run's folder or a site's."""

_PATTERNS: Final = {pattern for patterns in ROLES.values() for pattern in patterns}
_NAME: Final = re.compile(
    "|".join(
        re.escape(pattern).replace(r"\*", r"[^/\\]+")
        for pattern in sorted(_PATTERNS | {p.removesuffix(LOG) + "log.jsonl" for p in _PATTERNS if p.endswith(LOG)})
    )
)


def export(folder: Path, out: Path, role: str, key: SigningKey) -> list[str]:
    """Write the bundle of a run's folder, or a site's.

    Args:
        folder: Of the records.
        out: The archive; it is replaced in one step.
        role: One of `ROLES`.
        key: Signs the list of all files.

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
    contents |= {MANIFEST: manifest, SIGNATURE: key.sign(_CONTEXT, manifest).hex().encode()}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in sorted(contents.items()):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o600 << 16
            bundle.writestr(entry, content, zipfile.ZIP_DEFLATED)
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
            yield path.with_suffix(".jsonl").name, b"".join(text + b"\n" for text in log.texts())
    else:
        yield path.name, content_of(path) if path.suffix == ".sqlite" else _read(path)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, _MOST_BYTES)
    except OSError as exc:
        raise PrivacyError(f"{path} cannot be read: {exc.strerror}") from exc


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[Path, list[Check]]]:
    """Unpack a stranger's bundle into a folder that is gone after the block.

    Yields:
        The folder, and whether the bundle is as it was signed.

    Raises:
        PrivacyError: It is no bundle, or holds more than one may.
    """
    with TemporaryDirectory(prefix="fedglm-bundle-") as name:
        folder = Path(name)
        try:
            with zipfile.ZipFile(path) as bundle:
                checks = _unpack(bundle, folder)
        except _BROKEN as exc:
            if isinstance(exc, PrivacyError):
                raise
            raise PrivacyError(f"{path} is no bundle of fedglm audit export: {exc}") from exc
        yield folder, checks


def _unpack(bundle: zipfile.ZipFile, folder: Path) -> list[Check]:
    entries = bundle.infolist()
    if len(entries) > _MOST_FILES or sum(entry.file_size for entry in entries) > _MOST_BYTES:
        raise PrivacyError("the bundle holds more than any does: it is not unpacked")
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
        raise PrivacyError("the bundle is compressed as none of ours is: it is not unpacked")
    if any(bundle.getinfo(name).file_size > _MOST_LISTED for name in (MANIFEST, SIGNATURE)):
        raise PrivacyError(f"the bundle's {MANIFEST} is longer than any is: it is not unpacked")
    raw = bundle.read(MANIFEST)
    manifest: Any = json.loads(raw)
    key, files, role = PublicKey.from_hex(manifest["key"]), dict(manifest["files"]), manifest["role"]
    if type(role) is not str or role not in ROLES:
        raise PrivacyError(f"the bundle is for no role that there is; they are {', '.join(ROLES)}")
    named = {entry.filename for entry in entries} - {MANIFEST, SIGNATURE}
    for name in sorted(named | files.keys()):
        _check_name(name)
    wrong = sorted(named ^ files.keys())
    for name in sorted(named & files.keys()):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with bundle.open(name) as packed, target.open("x+b") as file:  # no piece of it is long
            shutil.copyfileobj(packed, file, 1 << 20)
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != files[name]:
                wrong.append(name)
    signature = bytes.fromhex(bundle.read(SIGNATURE).decode())
    if not key.verify(_CONTEXT, raw, signature):
        return [Check(subject="bundle", name="signature", held=False, said=f"{MANIFEST} is not signed by its key")]
    if wrong:
        said = f"{wrong[0]} is not what was signed ({len(wrong)} files)"
        return [Check(subject="bundle", name="files", held=False, said=said)]
    said = f"{len(files)} files for the role {role}, signed by {key.fingerprint()}"
    return [Check(subject="bundle", name="files", held=True, said=said)]


def _check_name(name: str) -> None:
    """Whatever else there is beside a log, a journal say, would be believed when the log is opened."""
    if not name.isprintable() or ".." in name.split("/") or "." in name.split("/") or not _NAME.fullmatch(name):
        raise PrivacyError(f"the bundle holds a file that none may: {name[:100]!a}")
