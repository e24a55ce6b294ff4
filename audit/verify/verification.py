"""Verifies a folder of any kind: a run with its sites, or one site, alone or against servers' logs.

docs/audit.md states what each verdict rests on.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from fedglm.audit.bundle.contents import PUBLIC
from fedglm.audit.bundle.untrusted_bundle import Bundle, unpack_bundle
from fedglm.audit.records.checks import Check, Scope, Verdict, reach_verdict, select_failed
from fedglm.audit.records.log_records import KnownKeys, LogRecord
from fedglm.audit.records.proofs import check_proof, read_proof_key
from fedglm.audit.records.run_files import RunFiles
from fedglm.audit.verify.log_pair import check_log_pair
from fedglm.audit.verify.log_set import (
    check_admitted,
    check_distinct_logs,
    check_known_keys,
    check_one_history,
    check_participants,
    check_shared_keys,
    check_signer,
    collect_site_keys,
    is_one_machine,
)
from fedglm.audit.verify.request import SERVER, VerificationRequest
from fedglm.audit.verify.server_records import audit_server
from fedglm.audit.verify.site_records import DataSetBudget, audit_site
from fedglm.core.untrusted_files import read_regular
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.log.signed_log import LOG
from fedglm.run_folder.names import AUDIT

Place: TypeAlias = str | PathLike[str]
"""Path of a folder or a file."""

_MAX_LABEL = 24
_MAX_ATTEMPTS = 3
_MAX_PROOF_BYTES = 2**20


@dataclass(frozen=True)
class Verification:
    """Result of a verification.

    Attributes:
        checks: All checks, the server's first.
        server: The server's log, if there is one that can be read; of several, that of the run to be verified.
        sites: Logs of the sites.
        budgets: Budget spent by each site's data sets, by the site's name; a site is absent if no figure of its is
            valid.
        scope: Which records were verified.
        others: Logs of servers of other runs.
    """

    checks: list[Check]
    server: LogRecord | None
    sites: list[LogRecord]
    budgets: dict[str, list[DataSetBudget]] = field(default_factory=dict)
    scope: Scope = Scope.RUN
    others: tuple[LogRecord, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong; something may be missing."""
        return not select_failed(self.checks)

    @property
    def verdict(self) -> Verdict:
        """The result of all checks together."""
        return reach_verdict(self.checks, self.scope)

    @property
    def logs(self) -> list[LogRecord]:
        """All logs that were read."""
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
        path: Folder of a run, a node or a site, a custody folder, a bundle (.zip) of one, or a proof (.json).
        server: Folders of runs or bundles of them, or servers' logs, to compare sites with.
        sites: Further folders or bundles of sites, whose records are not in the run's folder.
        keys: Keys that are known to be the owners' from elsewhere; empty to trust what the logs say.

    Raises:
        PrivacyError: There is nothing to verify there.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".json":
        try:
            proof = json.loads(read_regular(path, _MAX_PROOF_BYTES))
        except (OSError, ValueError, RecursionError) as exc:
            raise PrivacyError(f"{path} is no proof about a log: {exc}") from exc
        return _verify_proof(check_proof(proof), read_proof_key(proof), keys)
    with open_verification(path, server=server, sites=sites, keys=keys) as verification:
        return verification


@contextlib.contextmanager
def open_verification(
    path: Path,
    *,
    server: Place | Sequence[Place] | None = None,
    sites: Sequence[Place] = (),
    keys: Sequence[PublicKey] = (),
) -> Iterator[Verification]:
    """Verify a folder or a bundle (.zip) like `verify`; its logs can be read within the block.

    Args:
        path: Folder or bundle.
        server: See `verify`; each may be a bundle.
        sites: See `verify`; each may be a bundle.
        keys: See `verify`.

    Yields:
        The verification.

    Raises:
        PrivacyError: There is nothing to verify there.
    """
    servers, further = _list_servers(server), [Path(site) for site in sites]
    with contextlib.ExitStack() as stack:
        several = len(servers) > 1
        labels = {p: f"server's bundle {p.name[:_MAX_LABEL]}" if several else "server's bundle" for p in servers}
        labels |= {**{site: f"bundle {site.name[:_MAX_LABEL]}" for site in further}, path: "bundle"}
        bundles = _unpack_bundles(stack, labels)

        def get_folder(place: Path) -> Path:
            return bundles[place].folder if place in bundles else place

        def rename_folders(text: str) -> str:
            # Messages must name the bundle that the auditor named, not a temporary folder.
            for place, bundle in bundles.items():
                text = text.replace(str(bundle.folder), str(place))
            return text

        if path in bundles and not servers and not any(bundles[path].folder.rglob(LOG)):
            yield _verify_report(path, bundles[path], further, keys)
            return
        folder_labels = {bundle.folder: place.name for place, bundle in bundles.items()}
        request = VerificationRequest(
            get_folder(path), [*map(get_folder, servers)], [*map(get_folder, further)], keys, folder_labels
        )
        try:
            verification = _verify(request, [*bundles.values()])
        except PrivacyError as exc:
            raise PrivacyError(rename_folders(str(exc))) from exc
        checks = [check for bundle in bundles.values() for check in bundle.checks]
        checks += [check_signer(bundle, labels[place], verification.logs, keys) for place, bundle in bundles.items()]
        yield replace(
            verification,
            checks=[*checks, *(replace(check, detail=rename_folders(check.detail)) for check in verification.checks)],
        )


def _list_servers(server: Place | Sequence[Place] | None) -> list[Path]:
    """Return the servers as a list, each once."""
    named = [] if server is None else [server] if isinstance(server, str | PathLike) else server
    return list(dict.fromkeys(map(Path, named)))


def _unpack_bundles(stack: contextlib.ExitStack, labels: Mapping[Path, str]) -> dict[Path, Bundle]:
    """Unpack the bundles among some places, for as long as the stack is open.

    Args:
        stack: Exit stack that ends with the verification.
        labels: Folders and bundles, each with the name that a bundle has in checks.
    """
    bundles: dict[Path, Bundle] = {}
    for place, name in labels.items():
        if place.is_file() and place.suffix == ".zip":
            bundle = stack.enter_context(unpack_bundle(place))
            bundles[place] = replace(bundle, checks=[replace(check, subject=name) for check in bundle.checks])
    return bundles


def _verify_proof(check: Check, signed: PublicKey, keys: Sequence[PublicKey]) -> Verification:
    """Make the verification of a proof that was checked, with a check of the key that signed it."""
    checks = [check]
    if keys:
        known = signed in keys
        detail = f"{signed.fingerprint()} is {'known' if known else 'none of the keys that are known'}"
        checks.append(Check(subject="proof", name="known key", passed=known, detail=detail))
    return Verification(checks, None, [], scope=Scope.PROOF)


def _verify_report(path: Path, bundle: Bundle, sites: Sequence[Path], keys: Sequence[PublicKey]) -> Verification:
    """Verify a bundle without any log, which only one for the public is.

    Raises:
        PrivacyError: It is another bundle, whose files prove nothing.
    """
    if bundle.role != PUBLIC or sites:
        raise PrivacyError(f"{path} holds no log, so that nothing in it can be verified: ask for the whole bundle")
    detail = "the report alone: that it is as that key signed it was looked at, and nothing of what it says"
    records = Check(subject="bundle", name="records", passed=None, detail=detail, missing=True)
    return Verification([*bundle.checks, *check_known_keys([], [bundle], keys), records], None, [], scope=Scope.REPORT)


def _verify(request: VerificationRequest, bundles: Sequence[Bundle] = ()) -> Verification:
    """Verify a request, again if records changed meanwhile."""
    for _ in range(_MAX_ATTEMPTS):
        before = request.read_stamps()
        verification = _verify_once(request, bundles)
        if verification.passed or request.read_stamps() == before:
            break  # else a run is under way: one log was read before they countersigned each other, and another after
    return verification


def _verify_once(request: VerificationRequest, bundles: Sequence[Bundle]) -> Verification:
    """Verify a request as its records stand."""
    request.check()
    checks, servers = _audit_servers(request)
    known = KnownKeys(frozenset(key.hex for key in request.keys), collect_site_keys([record for _, record in servers]))
    logs: list[LogRecord] = []
    budgets: dict[str, list[DataSetBudget]] = {}
    for custody in request.custodies:
        site = audit_site(custody, known)
        checks += site.checks
        if site.log is not None:
            logs.append(site.log)
            budgets |= {} if site.budgets is None else {site.log.subject: site.budgets}
            for label, record in servers:
                checks += _label_checks(check_log_pair(record, site.log), label)
    records = [record for _, record in servers]
    checks += [*check_distinct_logs(logs), *check_shared_keys(records, logs), *check_one_history(records)]
    checks += check_known_keys([*records, *logs], bundles, request.keys)
    if len(logs) == len(request.custodies):
        checks += [check for label, one in servers for check in _check_sites(request, label, one, logs)]
        checks += check_admitted(records, logs) if servers and request.scope is Scope.SITE_AND_SERVER else []
    own = next((record for record in records if request.own_log in (None, record.path)), None)
    others = tuple(record for record in records if record is not own)
    return Verification(checks, own, logs, budgets, request.scope, others)


def _audit_servers(request: VerificationRequest) -> tuple[list[Check], list[tuple[str, LogRecord]]]:
    """Verify the servers' logs by themselves; return their checks, and the logs, each with the name of its owner."""
    checks: list[Check] = []
    servers: list[tuple[str, LogRecord]] = []
    known = KnownKeys(frozenset(key.hex for key in request.keys))
    for log in request.server_logs:
        files, damaged = _read_run_files(log, request)
        record, own = audit_server(log, files, known)
        label = request.label(log)
        checks += _label_checks([*damaged, *own], label)
        servers += [] if record is None else [(label, record)]
    if not request.server_logs and request.scope is Scope.RUN:
        detail = "the server's log is not here"
        checks.append(Check(subject=SERVER, name="log", passed=None, detail=detail, missing=True))
    return checks, servers


def _label_checks(checks: Sequence[Check], label: str) -> list[Check]:
    """Name the server in checks where there are several servers."""
    if label == SERVER:
        return [*checks]
    return [
        replace(check, subject=label) if check.subject == SERVER else replace(check, detail=f"{label}: {check.detail}")
        for check in checks
    ]


def _check_sites(request: VerificationRequest, label: str, server: LogRecord, logs: Sequence[LogRecord]) -> list[Check]:
    """Check who took part, by a server's log; of the run to be verified all sites must be here, if any is."""
    all_here = request.is_requested(server.path) and (request.scope is Scope.RUN or is_one_machine(server))
    return _label_checks([check_participants(server, logs, all_here=all_here)], label)


def _read_run_files(log: Path, request: VerificationRequest) -> tuple[RunFiles, list[Check]]:
    """Read the files of the run beside a log; a damaged one says nothing, and is reported by a check."""
    if log.parent.name != AUDIT:  # a log that was handed on alone lies in a folder of other things
        return RunFiles(None, None), []
    try:
        run, is_requested = log.parent.parent, request.is_requested(log)
        return RunFiles.read(run, is_requested=is_requested, is_bundle=run in request.labels), []
    except PrivacyError as exc:
        return RunFiles([], None), [Check(subject="run", name="files", passed=False, detail=str(exc))]
