"""Verifies several logs together: who took part, that no log stands in for another, and whose keys sign them."""

from collections.abc import Sequence

from fedglm.audit.bundle.untrusted_bundle import Bundle
from fedglm.audit.records.checks import Check
from fedglm.audit.records.log_records import LogRecord
from fedglm.privacy.custody.store import FOLDER
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.log.signed_log import LOG
from fedglm.run_folder.names import AUDIT


def collect_site_keys(servers: Sequence[LogRecord]) -> dict[str, set[str]]:
    """Return the keys (hex) by which servers knew sites, by the site's name."""
    keys: dict[str, set[str]] = {}
    for kind, name in (("admitted", "site"), ("witnessed", "name")):
        for entry in (entry for server in servers for entry in server.rare_entries(kind)):
            if entry["key"] is not None:
                keys.setdefault(entry[name], set()).add(entry["key"])
    return keys


def is_one_machine(server: LogRecord) -> bool:
    """Return whether sites and server were one machine.

    Such a machine has the records of all, and no site has a key of its own.
    """
    admitted = server.rare_entries("admitted")
    return bool(admitted) and not any(entry["key"] for entry in admitted)


def check_shared_keys(servers: Sequence[LogRecord], sites: Sequence[LogRecord]) -> list[Check]:
    """Check that no key signs the logs of two owners: one of them would have taken over the other's.

    Returns:
        A failed check for each such log.
    """
    logs = [*servers, *sites]
    owners: dict[str, set[str]] = {}
    for name, keys in [
        *((log.subject, {key.hex for key in log.keys}) for log in logs),
        *collect_site_keys(servers).items(),
    ]:
        for key in keys:
            owners.setdefault(key, set()).add(name)
    return [
        Check(subject=log.subject, name="key", passed=False, detail=f"it is signed with a key of {other}")
        for log in logs
        for other in sorted({name for key in log.keys for name in owners[key.hex]} - {log.subject})[:1]
    ]


def check_distinct_logs(sites: Sequence[LogRecord]) -> list[Check]:
    """Check that no two sites have the same log.

    Returns:
        A failed check for each such log.
    """
    seen: dict[str, str] = {}
    checks = []
    for site in sites:
        if site.origin in seen:
            detail = f"it is the log of {seen[site.origin]}, in another place"
            checks.append(Check(subject=site.subject, name="log", passed=False, detail=detail))
        seen[site.origin] = site.path.parent.parent.name
    return checks


def check_one_history(servers: Sequence[LogRecord]) -> list[Check]:
    """Check that each run is in one server's log, or in two of which one is an earlier copy of the other.

    Returns:
        A failed check for each run with two histories.
    """
    checks, known = [], dict[str, LogRecord]()
    for server in servers:
        for run in sorted({entry["run"] for entry in server.rare_entries("begun")}):
            other = known.setdefault(run, server)
            size = min(other.size, server.size)
            if other.origin != server.origin or other.compute_root(size) != server.compute_root(size):
                detail = f"there are two logs of run {run[:40]}, and neither is the beginning of the other"
                checks.append(Check(subject="server", name="log", passed=False, detail=detail))
    return checks


def check_known_keys(records: Sequence[LogRecord], bundles: Sequence[Bundle], keys: Sequence[PublicKey]) -> list[Check]:
    """Check that each key that is known from elsewhere signs a log or a bundle."""
    signed = {record.keys[-1]: (record.subject, "the log") for record in records}
    signed |= {bundle.key: ("bundle", "the bundle") for bundle in bundles if bundle.key not in signed}
    checks = []
    for key in keys:
        subject, what = signed.get(key, ("-", "none of the logs here"))
        detail = f"{key.fingerprint()} signs {what}"
        checks.append(Check(subject=subject, name="known key", passed=key in signed, detail=detail))
    return checks


def check_participants(server: LogRecord, sites: Sequence[LogRecord], *, all_here: bool) -> Check:
    """Check that there is a log here of each site that the server's log names.

    Args:
        server: The server's log.
        sites: Logs of the sites.
        all_here: Whether the logs of all sites should be here.
    """
    named = {entry["site"] for entry in server.rare_entries("admitted")}
    runs = {entry["run"] for entry in server.rare_entries("begun")}
    if not runs and any(site.scan.groups for site in sites):
        detail = "it shows no run at all, and sites released: it was made anew"
        return Check(subject="server", name="sites", passed=False, detail=detail)
    for site in sites:
        released = any(group.fields["run"] in runs for group in site.scan.groups.values())
        sealed = any(entry["log"] == server.origin for entry in site.rare_entries("witnessed"))
        if site.subject not in named and (released or sealed):
            detail = f"{site.subject}: the server admitted nobody of that name, and its log shows that it took part"
            return Check(subject="server", name="sites", passed=False, detail=detail)
    absent = sorted(named - {site.subject for site in sites})
    if not absent:
        others = sorted({site.subject for site in sites} - named)
        more = f"; {', '.join(others)[:200]} took no part" if others else ""
        return Check(
            subject="server", name="sites", passed=True, detail=f"all {len(named)} that took part are here{more}"
        )
    detail = f"{len(absent)} of {len(named)} that took part are not here: {', '.join(absent)[:200]}"
    return Check(subject="server", name="sites", passed=None, detail=detail, missing=all_here)


def check_admitted(servers: Sequence[LogRecord], sites: Sequence[LogRecord]) -> list[Check]:
    """Report sites that none of the servers admitted: comparing them with these servers' logs proves nothing.

    Returns:
        An undecided check for each such site.
    """
    named = {entry["site"] for server in servers for entry in server.rare_entries("admitted")}
    detail = "no log of a server here admits it, so that its records are held to nobody else's"
    return [
        Check(subject=site.subject, name="took part", passed=None, detail=detail, missing=True)
        for site in sites
        if site.subject not in named
    ]


def check_signer(bundle: Bundle, subject: str, records: Sequence[LogRecord], keys: Sequence[PublicKey]) -> Check:
    """Check that a bundle is signed by the owner of the records in it, or with a key that is known from elsewhere.

    Another's signature vouches for none of the files that no log shows: the report, the losses, the audits.

    Args:
        bundle: The bundle.
        subject: Its name in checks.
        records: Logs that were read.
        keys: Keys that are known from elsewhere.
    """
    places = {bundle.folder / AUDIT / LOG, bundle.folder / FOLDER / LOG}  # of a run, of a site
    owner = next((record for record in records if record.path in places), None)
    fingerprint = bundle.key.fingerprint()
    if owner is not None and owner.keys[-1] == bundle.key:
        return Check(subject=subject, name="signer", passed=True, detail=f"{fingerprint}, which signs its log, too")
    if bundle.key in keys:
        return Check(subject=subject, name="signer", passed=True, detail=f"{fingerprint}, which is known")
    detail = f"{fingerprint}, which signs no log of its owner's: whose that is is not known; if you know it, give --key"
    return Check(subject=subject, name="signer", passed=None, detail=detail, missing=True)
