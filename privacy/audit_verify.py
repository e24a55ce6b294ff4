"""Verification of a folder, whatever it is: a run with its sites, or one site, alone or against a server's log."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedglm.privacy.audit_bundle import unpacked
from fedglm.privacy.audit_checks import Check, failed
from fedglm.privacy.audit_log import KnownKeys, LogRecord
from fedglm.privacy.audit_run import RunFiles, audit_pair, audit_server
from fedglm.privacy.audit_site import Promise, audit_site
from fedglm.privacy.custody import FOLDER, LEDGER
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys import PublicKey
from fedglm.privacy.proofs import check_proof
from fedglm.privacy.regular import read_regular
from fedglm.privacy.signed_log import AUDIT, LOG

_LONGEST = 24
_TRIES = 3
_MOST_PROOF = 2**20
_OR_BUNDLE = "or a bundle of it for the role auditor or regulator"


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        checks: All of them, the server's first.
        server: Its log, where there is one that can be read.
        sites: Those of the sites.
        promises: What each site's data sets have spent, by the site's name; of a site that is not in it, no figure
            counts.
    """

    checks: list[Check]
    server: LogRecord | None
    sites: list[LogRecord]
    promises: dict[str, list[Promise]] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether nothing is wrong."""
        return not failed(self.checks)


def verify(
    folder: Path, *, server: Path | None = None, sites: Sequence[Path] = (), keys: Sequence[PublicKey] = ()
) -> Verification:
    """Verify all records in a folder, by themselves and against each other.

    Args:
        folder: A run's, a node's or site's, or a custody folder.
        server: A run's folder, or a server's log, to hold a site to.
        sites: Further folders of sites, whose records do not lie in the run's.
        keys: Those that the owners are known by, from elsewhere; empty to go by what the logs say.

    Raises:
        PrivacyError: There is nothing to verify there.
    """
    run = server if server is not None else folder
    log = run if run.is_file() else run / AUDIT / LOG
    custodies = [custody for place in (folder, *sites) for custody in _custodies(place)]
    for _ in range(_TRIES):
        before = _stamps(log, custodies)
        found = _verified(folder, server, sites, keys, log, custodies)
        if found.held or _stamps(log, custodies) == before:
            break  # else a run goes on, and one log was read before, and another after they sealed each other
    return found


def _stamps(log: Path, custodies: list[Path]) -> list[tuple[int, int] | None]:
    """When each file was changed last, and its size."""
    files = [log, *(custody / name for custody in custodies for name in (LOG, LEDGER))]
    return [(file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None for file in files]


def _verified(
    folder: Path, server: Path | None, sites: Sequence[Path], keys: Sequence[PublicKey], log: Path,
    custodies: list[Path],
) -> Verification:  # fmt: skip
    if missing := [place for place in sites if not _custodies(place)]:
        raise PrivacyError(f"{missing[0]} holds no log of a site: name a site's folder, {_OR_BUNDLE}")
    if server is not None and not custodies:  # the server's log alone would look like an answer
        raise PrivacyError(
            f"{folder} holds no log of a site to hold to the server's: name a site's folder, {_OR_BUNDLE}"
        )
    if not custodies and not log.is_file():
        raise PrivacyError(f"{folder} holds no log: name the folder of a run, of a node or of a site")
    checks: list[Check] = []
    record, known = None, KnownKeys(frozenset(key.hex for key in keys))
    if log.is_file():
        # A log that was handed on alone lies in a folder of other things.
        files, checks = _files_of(log.parent.parent) if log.parent.name == AUDIT else (RunFiles(None, None), [])
        record, own = audit_server(log, files, known)
        checks += own
        # What the server admitted or sealed with is a site's.
        known = KnownKeys(known.given, _keys_of_sites(record))
    elif server is not None:
        raise PrivacyError(f"{server} holds no log of a server: name the folder of a run, {_OR_BUNDLE}")
    elif any((folder / name).exists() for name in (AUDIT, "nodes", "rounds.jsonl")):
        checks.append(Check(subject="server", name="log", held=None, said="the server's log is not here"))
    logs: list[LogRecord] = []
    promises: dict[str, list[Promise]] = {}
    for custody in custodies:
        found = audit_site(custody, known)
        checks += found.checks
        if found.log is not None:
            logs.append(found.log)
            promises |= {} if found.promises is None else {found.log.subject: found.promises}
            checks += audit_pair(record, found.log) if record is not None else []
    checks += [*_distinct(logs), *_shared(record, logs)]
    checks += _known(logs if record is None else [record, *logs], keys)
    checks += [_missing(record, logs)] if record is not None and len(logs) == len(custodies) else []
    return Verification(checks, record, logs, promises)


def _signed_by(checks: list[Check], keys: Sequence[PublicKey]) -> list[Check]:
    """Whether what was signed once is signed by a key that is known from elsewhere."""
    if not keys or any(key.fingerprint() in check.said for key in keys for check in checks):
        return []
    return [Check(subject="-", name="known key", held=False, said="it is signed by none of the keys that are known")]


def _files_of(run: Path) -> tuple[RunFiles, list[Check]]:
    """What a run's files say; one that is damaged says nothing, and is named."""
    try:
        return RunFiles.read(run), []
    except PrivacyError as exc:
        return RunFiles([], None), [Check(subject="run", name="files", held=False, said=str(exc))]


def verify_anything(
    path: Path, *, server: Path | None = None, sites: Sequence[Path] = (), keys: Sequence[PublicKey] = ()
) -> Verification:
    """As `verify`, and also of a proof (.json); each folder may be a bundle (.zip) of it.

    Raises:
        PrivacyError: There is nothing to verify there.
    """
    if path.is_file() and path.suffix == ".json":
        try:
            proof = json.loads(read_regular(path, _MOST_PROOF))
        except (OSError, ValueError, RecursionError) as exc:
            raise PrivacyError(f"{path} is no proof about a log: {exc}") from exc
        checks = [check_proof(proof)]
        return Verification([*checks, *_signed_by(checks, keys)], None, [])
    with opened_verification(path, server=server, sites=sites, keys=keys) as found:
        return found


@contextlib.contextmanager
def opened_verification(
    path: Path, *, server: Path | None = None, sites: Sequence[Path] = (), keys: Sequence[PublicKey] = ()
) -> Iterator[Verification]:
    """As `verify`; each folder may be a bundle (.zip) of it, whose logs can be read within the block.

    Raises:
        PrivacyError: There is nothing to verify there.
    """
    with contextlib.ExitStack() as stack:
        called = {**{site: f"bundle {site.name[:_LONGEST]}" for site in sites}, path: "bundle"}
        folders, checks = _folders(stack, called if server is None else {server: "server's bundle", **called})

        def folder_of(place: Path) -> Path:
            return folders.get(place, place)

        def named(text: str) -> str:
            for place, folder in folders.items():  # what is said names what the auditor named
                text = text.replace(str(folder), str(place))
            return text

        whole = folder_of(path)
        if path in folders and server is None and not sites and not any(whole.rglob(LOG)):
            yield Verification([*checks, *_signed_by(checks, keys)], None, [])
            return
        against = None if server is None else folder_of(server)
        try:
            found = verify(whole, server=against, sites=[folder_of(site) for site in sites], keys=keys)
        except PrivacyError as exc:
            raise PrivacyError(named(str(exc))) from exc
        yield replace(found, checks=[*checks, *(replace(check, said=named(check.said)) for check in found.checks)])


def _folders(stack: contextlib.ExitStack, called: Mapping[Path, str]) -> tuple[dict[Path, Path], list[Check]]:
    """The folder of each bundle among the places, for as long as the stack lives, and what the bundles say themselves.

    Args:
        stack: Ends with the verification.
        called: Folders and bundles, and what a bundle is called in checks.
    """
    folders: dict[Path, Path] = {}
    checks: list[Check] = []
    for place, name in called.items():
        if place.is_file() and place.suffix == ".zip":
            folders[place], own = stack.enter_context(unpacked(place))
            checks += [replace(check, subject=name) for check in own]
    return folders, checks


def _custodies(folder: Path) -> list[Path]:
    """Custody folders in a folder."""
    if folder.is_file():
        return []
    own = [folder] if (folder / LEDGER).is_file() else []
    own += [folder / FOLDER] if (folder / FOLDER).is_dir() else []
    return own + sorted(path for path in folder.glob(f"nodes/*/{FOLDER}") if path.is_dir())


def _known(records: list[LogRecord], keys: Sequence[PublicKey]) -> list[Check]:
    """Each key that is known from elsewhere is that of a log."""
    found = {record.keys[-1]: record for record in records}
    checks = []
    for key in keys:
        held = key in found
        said = f"{key.fingerprint()} signs the log" if held else f"{key.fingerprint()} signs none of the logs here"
        subject = found[key].subject if held else "-"
        checks.append(Check(subject=subject, name="known key", held=held, said=said))
    return checks


def _keys_of_sites(server: LogRecord | None) -> dict[str, set[str]]:
    """Keys that a server knew sites by, by their names."""
    found: dict[str, set[str]] = {}
    for kind, name in (("admitted", "site"), ("witnessed", "name")):
        for entry in [] if server is None else server.of_kind(kind):
            if entry["key"] is not None:
                found.setdefault(entry[name], set()).add(entry["key"])
    return found


def _shared(server: LogRecord | None, sites: list[LogRecord]) -> list[Check]:
    """No key signs the logs of two owners: one of them would have taken over the other's."""
    logs = [*([server] if server else []), *sites]
    owners: dict[str, set[str]] = {}
    for name, keys in [
        *((log.subject, {key.hex for key in log.keys}) for log in logs),
        *_keys_of_sites(server).items(),
    ]:
        for key in keys:
            owners.setdefault(key, set()).add(name)
    return [
        Check(subject=log.subject, name="key", held=False, said=f"it is signed with a key of {other}")
        for log in logs
        for other in sorted({name for key in log.keys for name in owners[key.hex]} - {log.subject})[:1]
    ]


def _distinct(sites: list[LogRecord]) -> list[Check]:
    """No two sites show one log."""
    seen: dict[str, str] = {}
    checks = []
    for site in sites:
        if site.origin in seen:
            said = f"it is the log of {seen[site.origin]}, in another place"
            checks.append(Check(subject=site.subject, name="log", held=False, said=said))
        seen[site.origin] = site.path.parent.parent.name
    return checks


def _missing(server: LogRecord, sites: list[LogRecord]) -> Check:
    """Sites that the server's log names, and of which there is no log here."""
    named = {entry["site"] for entry in server.of_kind("admitted")}
    runs = {entry["run"] for entry in server.of_kind("begun")}
    if not runs and any(site.scan.groups for site in sites):
        said = "it shows no run at all, and sites released: it was made anew"
        return Check(subject="server", name="sites", held=False, said=said)
    for site in sites:
        took_part = any(group.fields["run"] in runs for group in site.scan.groups.values())
        sealed = any(entry["log"] == server.origin for entry in site.of_kind("witnessed"))
        if site.subject not in named and (took_part or sealed):
            said = f"{site.subject}: the server admitted nobody of that name, and its log shows that it took part"
            return Check(subject="server", name="sites", held=False, said=said)
    left = sorted(named - {site.subject for site in sites})
    if not left:
        others = sorted({site.subject for site in sites} - named)
        more = f"; {', '.join(others)[:200]} took no part" if others else ""
        return Check(subject="server", name="sites", held=True, said=f"all {len(named)} that took part are here{more}")
    said = f"{len(left)} of {len(named)} that took part are not here: {', '.join(left)[:200]}"
    return Check(subject="server", name="sites", held=None, said=said)
