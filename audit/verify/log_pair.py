"""Verification of a server's log and a site's against each other.

What one side cannot rewrite is what the other has seen: the server's log shows how each site's stood after every update
that it took, and each site's log shows how the server's stood when they sealed them.
"""

import hashlib
from typing import Any

from fedglm.audit.records.checks import Check
from fedglm.audit.records.log_records import LogRecord
from fedglm.audit.records.log_summary import Accepted
from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.log.tree_head import SignedTreeHead
from fedglm.privacy.policy.run_plan import SignedPlan


def _check(name: str, held: bool | None, said: str, subject: str, *, missing: bool = False) -> Check:
    return Check(subject=subject, name=name, held=held, said=said, missing=missing)


def audit_pair(server: LogRecord, site: LogRecord) -> list[Check]:
    """Hold a site's log and the server's to each other."""
    witnessed = [entry for entry in server.of_kind("witnessed") if entry["name"] == site.subject]
    taken = [update for update in server.scan.accepted if update.site == site.subject]
    if (odd := _another(server, site)) is not None:
        return [_check("seen by server", False, odd, site.subject)]
    return [
        _sealed(server, site),
        _seen("seen by server", site, witnessed, server.subject),
        _seen("seen by site", server, _of(site, server), site.subject, of=site.subject),
        _anchors(site, taken),
        *_earlier(server, site),
        _received(server, site, taken),
    ]


def _another(server: LogRecord, site: LogRecord) -> str | None:
    """Why the two do not belong together: one of them was made anew, or goes by another name or plan."""
    for entry in server.of_kind("witnessed"):
        same_name, same_log = entry["name"] == site.subject, entry["log"] == site.origin
        if same_name != same_log:
            return f"entry {entry['number']} of the server's log has seen this log or this name with another"
    runs: dict[str, set[str]] = {}  # a run that goes on with other code has another plan
    for entry in server.of_kind("announced"):
        runs.setdefault(entry["run"], set()).add(entry["plan"])
    admitted = {entry["run"]: entry["number"] for entry in server.of_kind("admitted") if entry["site"] == site.subject}
    keys = {key.hex for key in server.keys}
    for entry in site.of_kind("witnessed"):
        if entry["run"] in runs and entry["log"] != server.origin:
            return f"entry {entry['number']}: the site has seen another log of the server for the same run"
    for entry in site.of_kind("plan"):
        try:
            plan = SignedPlan.from_text(entry["signed"]).plan
        except (PrivacyError, ValueError):
            continue  # which the site's own checks name
        if plan.run in runs and (entry["server"] not in keys or plan.sha256 not in runs[plan.run]):
            return f"entry {entry['number']}: the site admitted another plan for this run than the server announced"
        admitted.pop(plan.run, None)
    if admitted:
        number = min(admitted.values())
        return f"entry {number} of the server's log admits it to a run of which its own log shows no plan"
    known = {entry["key"] for entry in server.of_kind("admitted") if entry["site"] == site.subject} - {None}
    known |= {entry["key"] for entry in server.of_kind("witnessed") if entry["name"] == site.subject}
    if known and not known & {key.hex for key in site.keys}:
        return "the server knew this site by another key"
    return None


def _of(site: LogRecord, server: LogRecord) -> list[dict[str, Any]]:
    return [entry for entry in site.of_kind("witnessed") if entry["log"] == server.origin]


def _seen(name: str, log: LogRecord, entries: list[dict[str, Any]], by: str, of: str | None = None) -> Check:
    """What another log has seen of this one is what this one shows."""
    subject = of or log.subject
    keys = {key.hex for key in log.keys}
    for entry in entries:
        seen = SignedTreeHead.from_fields(log.origin, entry)
        where = f"entry {entry['number']} of {by}'s log"
        if entry["key"] not in keys or not seen.is_by(PublicKey.from_hex(entry["key"])):
            return _check(name, False, f"{where} shows a checkpoint by a key that {log.subject}'s log has not", subject)
        if seen.size > log.size:
            said = f"entry {log.size + 1} of {log.subject}'s log and all after it were cut off: {where} has seen "
            return _check(name, False, f"{said}{seen.size} entries", subject)
        if log.root(seen.size) != seen.root:
            said = f"entries 1 to {seen.size} of {log.subject}'s log are not those that {where} has seen"
            return _check(name, False, said, subject)
    if not entries:
        return _check(name, None, f"{by}'s log has seen nothing of {log.subject}'s yet", subject)
    most = max(entry["size"] for entry in entries)
    return _check(name, True, f"up to entry {most} of {log.size} of {log.subject}'s log", subject)


def _sealed(server: LogRecord, site: LogRecord) -> Check:
    """The server has countersigned all that left the site in its runs."""
    runs = {entry["run"] for entry in server.of_kind("begun")}
    last = max((group.last for group in site.scan.groups.values() if group.fields["run"] in runs), default=0)
    keys = {key.hex for key in server.keys}
    sealed = max((entry["size"] for entry in site.of_kind("countersigned") if entry["by"] in keys), default=0)
    said = f"the server countersigned the first {sealed} entries; the last release to it is entry {last or 'none'}"
    elsewhere = not last and bool(site.scan.groups)
    held = bool(sealed) and sealed >= last and not elsewhere
    took_part = any(entry["site"] == site.subject for entry in server.of_kind("admitted"))
    return _check("sealed", held or None, said, site.subject, missing=took_part)


def _anchors(site: LogRecord, taken: list[Accepted]) -> Check:
    """The site's log stood where each of its updates said that it stood."""
    anchored = sorted((u for u in taken if u.anchor is not None), key=lambda u: int(str(u.anchor).partition(":")[0]))
    good = 0
    for update in anchored:
        rows = int(str(update.anchor).partition(":")[0])
        if not site.holds(str(update.anchor)):
            said = f"an entry from {good + 1} to {rows} was changed or cut: the server saw another in round"
            return _check("anchors", False, f"{said} {update.round}", site.subject)
        good = rows
    if not taken:
        return _check("anchors", None, "the server took no update of it", site.subject)
    if not anchored:
        return _check("anchors", None, "without noise, updates show no anchor of the site's log", site.subject)
    return _check("anchors", True, f"{len(anchored)} updates, each shows where the log stood", site.subject)


def _earlier(server: LogRecord, site: LogRecord) -> list[Check]:
    """The site's log shows where the server had seen it, in earlier runs, when it admitted the site to this one.

    What happens within a run is no matter here: this finds a log that was put back between two of them.
    """
    admitted = [entry for entry in server.of_kind("admitted") if entry["site"] == site.subject and entry.get("anchor")]
    for entry in admitted:
        if not site.holds(entry["anchor"]):
            rows = entry["anchor"].partition(":")[0]
            said = f"entry {entry['number']} of the server's log: it had seen {rows} entries of this log before that"
            back = "this log shows others: an older copy was put back, or it was made anew"
            return [_check("earlier anchor", False, f"{said}, and {back}", site.subject)]
    if not admitted:
        return []
    said = f"{len(admitted)} times admitted, and the log shows each time where the server had seen it before"
    return [_check("earlier anchor", True, said, site.subject)]


def _received(server: LogRecord, site: LogRecord, taken: list[Accepted]) -> Check:
    """Each update that the server took is a release of the site's, of the same bytes; under noise, of that round."""
    again, noised = {entry["release"] for entry in site.of_kind("resent")}, _noised(server)
    for update in taken:
        known = site.scan.release_in(update.release, update.round)
        if known is None:
            said = f"entry {update.number} of the server's log: an update of round {update.round} that the site's log "
            return _check("releases received", False, f"{said}does not show", site.subject)
        number, size, at = known
        if update.measures is not None and not _measured(site, update):
            said = f"entry {update.number} of the server's log: measures of round {update.round} that the site's log "
            return _check("releases received", False, f"{said}does not show", site.subject)
        # Without noise the same bytes may have left in another round or run, and are charged once; noise is fresh.
        if update.release.hex() in again and update.run not in noised:
            continue
        if at != update.round or size not in (0, update.size):
            said = f"entry {number}: a release of {size} bytes in round {at}; the server took {update.size} in round "
            return _check("releases received", False, f"{said}{update.round}", site.subject)
    runs = {entry["run"] for entry in server.of_kind("begun")}
    of_run = sum(group.count for group in site.scan.groups.values() if group.fields["run"] in runs)
    measures = sum(
        group.count
        for group in site.scan.groups.values()
        if group.fields["run"] in runs and group.fields["purpose"] == "metrics"
    )
    left_over = of_run - measures - len({update.release for update in taken})
    more = f"; {left_over} more were charged for, and not folded in" if left_over > 0 else ""
    return _check(
        "releases received", True, f"{len(taken)} updates are those that the site released{more}", site.subject
    )


def _noised(server: LogRecord) -> set[str]:
    """Runs whose plans ask for noise."""
    found = set()
    for entry in server.of_kind("announced"):
        try:
            spec = SignedPlan.from_text(entry["signed"]).plan.spec
        except (PrivacyError, ValueError):
            continue  # which the server's own checks name
        if spec.noise.mechanism is not None:
            found.add(entry["run"])
    return found


def _measured(site: LogRecord, update: Accepted) -> bool:
    """Whether the site's log shows the measures beside an update, by the hash that the gate charges for."""
    told = canonical_json({**(update.measures or {}), "run": update.run, "round": update.round})
    return hashlib.sha256(told).digest() in site.scan.releases
