"""Verification of logs beside each other: who took part, no log for another's, and whose keys they are signed with."""

from collections.abc import Sequence

from fedglm.audit.bundle.untrusted_bundle import Bundle
from fedglm.audit.records.checks import Check
from fedglm.audit.records.log_records import LogRecord
from fedglm.privacy.custody.store import FOLDER
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.log.signed_log import LOG
from fedglm.run_folder.names import AUDIT


def keys_of_sites(servers: Sequence[LogRecord]) -> dict[str, set[str]]:
    """Keys (hex) that servers knew sites by, by their names."""
    found: dict[str, set[str]] = {}
    for kind, name in (("admitted", "site"), ("witnessed", "name")):
        for entry in (entry for server in servers for entry in server.of_kind(kind)):
            if entry["key"] is not None:
                found.setdefault(entry[name], set()).add(entry["key"])
    return found


def is_one_machine(server: LogRecord) -> bool:
    """Whether sites and server were one machine, which then has the records of all: no site has a key of its own."""
    admitted = server.of_kind("admitted")
    return bool(admitted) and not any(entry["key"] for entry in admitted)


def shared_keys(servers: Sequence[LogRecord], sites: Sequence[LogRecord]) -> list[Check]:
    """No key signs the logs of two owners: one of them would have taken over the other's."""
    logs = [*servers, *sites]
    owners: dict[str, set[str]] = {}
    for name, keys in [
        *((log.subject, {key.hex for key in log.keys}) for log in logs),
        *keys_of_sites(servers).items(),
    ]:
        for key in keys:
            owners.setdefault(key, set()).add(name)
    return [
        Check(subject=log.subject, name="key", held=False, said=f"it is signed with a key of {other}")
        for log in logs
        for other in sorted({name for key in log.keys for name in owners[key.hex]} - {log.subject})[:1]
    ]


def distinct(sites: Sequence[LogRecord]) -> list[Check]:
    """No two sites show one log."""
    seen: dict[str, str] = {}
    checks = []
    for site in sites:
        if site.origin in seen:
            said = f"it is the log of {seen[site.origin]}, in another place"
            checks.append(Check(subject=site.subject, name="log", held=False, said=said))
        seen[site.origin] = site.path.parent.parent.name
    return checks


def one_history(servers: Sequence[LogRecord]) -> list[Check]:
    """Of no run there are two logs of the server's, but for an earlier copy of one."""
    checks, known = [], dict[str, LogRecord]()
    for server in servers:
        for run in sorted({entry["run"] for entry in server.of_kind("begun")}):
            other = known.setdefault(run, server)
            size = min(other.size, server.size)
            if other.origin != server.origin or other.root(size) != server.root(size):
                said = f"there are two logs of run {run[:40]}, and neither is the beginning of the other"
                checks.append(Check(subject="server", name="log", held=False, said=said))
    return checks


def known_keys(records: Sequence[LogRecord], bundles: Sequence[Bundle], keys: Sequence[PublicKey]) -> list[Check]:
    """Each key that is known from elsewhere is that of a log, or of a bundle."""
    signed = {record.keys[-1]: (record.subject, "the log") for record in records}
    signed |= {bundle.key: ("bundle", "the bundle") for bundle in bundles if bundle.key not in signed}
    checks = []
    for key in keys:
        subject, what = signed.get(key, ("-", "none of the logs here"))
        said = f"{key.fingerprint()} signs {what}"
        checks.append(Check(subject=subject, name="known key", held=key in signed, said=said))
    return checks


def took_part(server: LogRecord, sites: Sequence[LogRecord], *, all_here: bool) -> Check:
    """Sites that the server's log names, and of which there is no log here.

    Args:
        server: The server's log.
        sites: Those of the sites.
        all_here: Whether those of all should be.
    """
    named = {entry["site"] for entry in server.of_kind("admitted")}
    runs = {entry["run"] for entry in server.of_kind("begun")}
    if not runs and any(site.scan.groups for site in sites):
        said = "it shows no run at all, and sites released: it was made anew"
        return Check(subject="server", name="sites", held=False, said=said)
    for site in sites:
        released = any(group.fields["run"] in runs for group in site.scan.groups.values())
        sealed = any(entry["log"] == server.origin for entry in site.of_kind("witnessed"))
        if site.subject not in named and (released or sealed):
            said = f"{site.subject}: the server admitted nobody of that name, and its log shows that it took part"
            return Check(subject="server", name="sites", held=False, said=said)
    left = sorted(named - {site.subject for site in sites})
    if not left:
        others = sorted({site.subject for site in sites} - named)
        more = f"; {', '.join(others)[:200]} took no part" if others else ""
        return Check(subject="server", name="sites", held=True, said=f"all {len(named)} that took part are here{more}")
    said = f"{len(left)} of {len(named)} that took part are not here: {', '.join(left)[:200]}"
    return Check(subject="server", name="sites", held=None, said=said, missing=all_here)


def admitted(servers: Sequence[LogRecord], sites: Sequence[LogRecord]) -> list[Check]:
    """Sites that none of the servers admitted, to whose logs they are held: that holds them to nothing."""
    named = {entry["site"] for server in servers for entry in server.of_kind("admitted")}
    said = "no log of a server here admits it, so that its records are held to nobody else's"
    return [
        Check(subject=site.subject, name="took part", held=None, said=said, missing=True)
        for site in sites
        if site.subject not in named
    ]


def signer(bundle: Bundle, subject: str, records: Sequence[LogRecord], keys: Sequence[PublicKey]) -> Check:
    """Whether a bundle is signed by the owner of the records in it, or with a key that is known from elsewhere.

    Another's signature is nobody's word for the files that no log shows: the report, the losses, the audits.
    """
    places = {bundle.folder / AUDIT / LOG, bundle.folder / FOLDER / LOG}  # of a run, of a site
    owner = next((record for record in records if record.path in places), None)
    fingerprint = bundle.key.fingerprint()
    if owner is not None and owner.keys[-1] == bundle.key:
        return Check(subject=subject, name="signer", held=True, said=f"{fingerprint}, which signs its log, too")
    if bundle.key in keys:
        return Check(subject=subject, name="signer", held=True, said=f"{fingerprint}, which is known")
    said = f"{fingerprint}, which signs no log of its owner's: whose that is is not known; if you know it, give --key"
    return Check(subject=subject, name="signer", held=None, said=said, missing=True)
