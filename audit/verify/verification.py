"""Verification of a folder, whatever it is: a run with its sites, or one site, alone or against servers' logs.

What each verdict rests on stands in docs/audit.md.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from fedglm.audit.bundle.contents import PUBLIC
from fedglm.audit.bundle.untrusted_bundle import Bundle, unpacked
from fedglm.audit.records.checks import Check, Scope, Verdict, failed, verdict
from fedglm.audit.records.log_records import KnownKeys, LogRecord
from fedglm.audit.records.proofs import check_proof, proof_key
from fedglm.audit.records.run_files import RunFiles
from fedglm.audit.verify.asked import SERVER, Asked
from fedglm.audit.verify.log_pair import audit_pair
from fedglm.audit.verify.logs_together import (
    admitted,
    distinct,
    is_one_machine,
    keys_of_sites,
    known_keys,
    one_history,
    shared_keys,
    signer,
    took_part,
)
from fedglm.audit.verify.server_records import audit_server
from fedglm.audit.verify.site_records import Promise, audit_site
from fedglm.core.untrusted_files import read_regular
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.log.signed_log import LOG
from fedglm.run_folder.names import AUDIT

Place: TypeAlias = str | PathLike[str]
"""The path of a folder or a file."""

_LONGEST = 24
_TRIES = 3
_MAX_PROOF = 2**20


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        checks: All of them, the server's first.
        server: Its log, where there is one that can be read; of several, that of the run that was asked about.
        sites: Those of the sites.
        promises: What each site's data sets have spent, by the site's name; of a site that is not in it, no figure
            counts.
        scope: What was looked at.
        others: Logs of servers of other runs.
    """

    checks: list[Check]
    server: LogRecord | None
    sites: list[LogRecord]
    promises: dict[str, list[Promise]] = field(default_factory=dict)
    scope: Scope = Scope.RUN
    others: tuple[LogRecord, ...] = ()

    @property
    def held(self) -> bool:
        """Whether nothing is wrong; something may be missing."""
        return not failed(self.checks)

    @property
    def verdict(self) -> Verdict:
        """What all checks come to."""
        return verdict(self.checks, self.scope)

    @property
    def logs(self) -> list[LogRecord]:
        """All that were read."""
        return [*([] if self.server is None else [self.server]), *self.others, *self.sites]


def verify(
    path: str | PathLike[str],
    *,
    server: Place | Sequence[Place] | None = None,
    sites: Sequence[Place] = (),
    keys: Sequence[PublicKey] = (),
) -> Verification:
    """Verify all records of a run or a site, by themselves and against each other, as `fedglm audit verify` does.

    Args:
        path: The folder of a run, a node or a site, a custody folder, a bundle (.zip) of one, or a proof (.json).
        server: Runs' folders or bundles of them, or servers' logs, to hold sites to.
        sites: Further folders or bundles of sites, whose records do not lie in the run's.
        keys: Those that the owners are known by, from elsewhere; empty to go by what the logs say.

    Raises:
        PrivacyError: There is nothing to verify there.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".json":
        try:
            proof = json.loads(read_regular(path, _MAX_PROOF))
        except (OSError, ValueError, RecursionError) as exc:
            raise PrivacyError(f"{path} is no proof about a log: {exc}") from exc
        return _of_proof(check_proof(proof), proof_key(proof), keys)
    with opened_verification(path, server=server, sites=sites, keys=keys) as found:
        return found


@contextlib.contextmanager
def opened_verification(
    path: Path,
    *,
    server: Place | Sequence[Place] | None = None,
    sites: Sequence[Place] = (),
    keys: Sequence[PublicKey] = (),
) -> Iterator[Verification]:
    """As `verify`, of no proof; the logs of bundles can be read within the block.

    Raises:
        PrivacyError: There is nothing to verify there.
    """
    servers, further = _several(server), [Path(site) for site in sites]
    with contextlib.ExitStack() as stack:
        several = len(servers) > 1
        called = {p: f"server's bundle {p.name[:_LONGEST]}" if several else "server's bundle" for p in servers}
        called |= {**{site: f"bundle {site.name[:_LONGEST]}" for site in further}, path: "bundle"}
        bundles = _bundles(stack, called)

        def folder_of(place: Path) -> Path:
            return bundles[place].folder if place in bundles else place

        def named(text: str) -> str:
            for place, bundle in bundles.items():  # what is said names what the auditor named
                text = text.replace(str(bundle.folder), str(place))
            return text

        if path in bundles and not servers and not any(bundles[path].folder.rglob(LOG)):
            yield _of_report(path, bundles[path], further, keys)
            return
        names = {bundle.folder: place.name for place, bundle in bundles.items()}
        asked = Asked(folder_of(path), [*map(folder_of, servers)], [*map(folder_of, further)], keys, names)
        try:
            found = _verify(asked, [*bundles.values()])
        except PrivacyError as exc:
            raise PrivacyError(named(str(exc))) from exc
        checks = [check for bundle in bundles.values() for check in bundle.checks]
        checks += [signer(bundle, called[place], found.logs, keys) for place, bundle in bundles.items()]
        yield replace(found, checks=[*checks, *(replace(check, said=named(check.said)) for check in found.checks)])


def _several(server: Place | Sequence[Place] | None) -> list[Path]:
    named = [] if server is None else [server] if isinstance(server, str | PathLike) else server
    return list(dict.fromkeys(map(Path, named)))


def _bundles(stack: contextlib.ExitStack, called: Mapping[Path, str]) -> dict[Path, Bundle]:
    """The bundles among places, unpacked for as long as the stack lives.

    Args:
        stack: Ends with the verification.
        called: Folders and bundles, and what a bundle is called in checks.
    """
    bundles: dict[Path, Bundle] = {}
    for place, name in called.items():
        if place.is_file() and place.suffix == ".zip":
            bundle = stack.enter_context(unpacked(place))
            bundles[place] = replace(bundle, checks=[replace(check, subject=name) for check in bundle.checks])
    return bundles


def _of_proof(check: Check, signed: PublicKey, keys: Sequence[PublicKey]) -> Verification:
    checks = [check]
    if keys:
        known = signed in keys
        said = f"{signed.fingerprint()} is {'known' if known else 'none of the keys that are known'}"
        checks.append(Check(subject="proof", name="known key", held=known, said=said))
    return Verification(checks, None, [], scope=Scope.PROOF)


def _of_report(path: Path, bundle: Bundle, sites: Sequence[Path], keys: Sequence[PublicKey]) -> Verification:
    """Of a bundle without any log, which only that for the public is.

    Raises:
        PrivacyError: It is another, whose files prove nothing.
    """
    if bundle.role != PUBLIC or sites:
        raise PrivacyError(f"{path} holds no log, so that nothing in it can be verified: ask for the whole bundle")
    said = "the report alone: that it is as that key signed it was looked at, and nothing of what it says"
    records = Check(subject="bundle", name="records", held=None, said=said, missing=True)
    return Verification([*bundle.checks, *known_keys([], [bundle], keys), records], None, [], scope=Scope.REPORT)


def _verify(asked: Asked, bundles: Sequence[Bundle] = ()) -> Verification:
    for _ in range(_TRIES):
        before = asked.stamps()
        found = _verified(asked, bundles)
        if found.held or asked.stamps() == before:
            break  # else a run goes on, and one log was read before, and another after they sealed each other
    return found


def _verified(asked: Asked, bundles: Sequence[Bundle]) -> Verification:
    asked.check()
    checks, servers = _servers(asked)
    known = KnownKeys(frozenset(key.hex for key in asked.keys), keys_of_sites([record for _, record in servers]))
    logs: list[LogRecord] = []
    promises: dict[str, list[Promise]] = {}
    for custody in asked.custodies:
        found = audit_site(custody, known)
        checks += found.checks
        if found.log is not None:
            logs.append(found.log)
            promises |= {} if found.promises is None else {found.log.subject: found.promises}
            for label, record in servers:
                checks += _labelled(audit_pair(record, found.log), label)
    records = [record for _, record in servers]
    checks += [*distinct(logs), *shared_keys(records, logs), *one_history(records)]
    checks += known_keys([*records, *logs], bundles, asked.keys)
    if len(logs) == len(asked.custodies):
        checks += [check for label, one in servers for check in _sites(asked, label, one, logs)]
        checks += admitted(records, logs) if servers and asked.scope is Scope.SITE_AND_SERVER else []
    own = next((record for record in records if asked.own_log in (None, record.path)), None)
    others = tuple(record for record in records if record is not own)
    return Verification(checks, own, logs, promises, asked.scope, others)


def _servers(asked: Asked) -> tuple[list[Check], list[tuple[str, LogRecord]]]:
    """Checks of the servers' logs by themselves, and the logs, each with what its owner is called."""
    checks: list[Check] = []
    servers: list[tuple[str, LogRecord]] = []
    known = KnownKeys(frozenset(key.hex for key in asked.keys))
    for log in asked.logs:
        files, damaged = _files_of(log, asked)
        record, own = audit_server(log, files, known)
        label = asked.label(log)
        checks += _labelled([*damaged, *own], label)
        servers += [] if record is None else [(label, record)]
    if not asked.logs and asked.scope is Scope.RUN:
        said = "the server's log is not here"
        checks.append(Check(subject=SERVER, name="log", held=None, said=said, missing=True))
    return checks, servers


def _labelled(checks: Sequence[Check], label: str) -> list[Check]:
    """Checks as they are told where there are several servers."""
    if label == SERVER:
        return [*checks]
    return [
        replace(check, subject=label) if check.subject == SERVER else replace(check, said=f"{label}: {check.said}")
        for check in checks
    ]


def _sites(asked: Asked, label: str, server: LogRecord, logs: Sequence[LogRecord]) -> list[Check]:
    """Who took part, by a server's log; of the run that was asked about all must be here, if any is."""
    all_here = asked.is_about(server.path) and (asked.scope is Scope.RUN or is_one_machine(server))
    return _labelled([took_part(server, logs, all_here=all_here)], label)


def _files_of(log: Path, asked: Asked) -> tuple[RunFiles, list[Check]]:
    """What the files of a run say, beside whose log they are; one that is damaged says nothing, and is named."""
    if log.parent.name != AUDIT:  # a log that was handed on alone lies in a folder of other things
        return RunFiles(None, None), []
    try:
        return RunFiles.read(log.parent.parent, asked=asked.is_about(log)), []
    except PrivacyError as exc:
        return RunFiles([], None), [Check(subject="run", name="files", held=False, said=str(exc))]
