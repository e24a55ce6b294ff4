"""Verifies a server's log and a site's against each other.

Neither side can rewrite what the other has seen: the server's log shows the state of each site's log after every update
that it accepted, and each site's log shows the state of the server's log when they countersigned each other.
"""

import hashlib
from typing import Any

from fedglm.audit.records.checks import Check
from fedglm.audit.records.log_records import LogRecord
from fedglm.audit.records.log_summary import AcceptedUpdate
from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.log.tree_head import SignedTreeHead
from fedglm.privacy.policy.run_plan import SignedPlan


def _make_check(name: str, passed: bool | None, detail: str, subject: str, *, missing: bool = False) -> Check:
    return Check(subject=subject, name=name, passed=passed, detail=detail, missing=missing)


def check_log_pair(server: LogRecord, site: LogRecord) -> list[Check]:
    """Compare a site's log and the server's."""
    witnessed = [entry for entry in server.rare_entries("witnessed") if entry["name"] == site.subject]
    accepted = [update for update in server.scan.accepted if update.site == site.subject]
    if (mismatch := _find_mismatch(server, site)) is not None:
        return [_make_check("seen by server", False, mismatch, site.subject)]
    return [
        _check_sealed(server, site),
        _check_seen("seen by server", site, witnessed, server.subject),
        _check_seen("seen by site", server, _select_witnessed(site, server), site.subject, of=site.subject),
        _check_anchors(site, accepted),
        *_check_earlier_anchors(server, site),
        _check_received(server, site, accepted),
    ]


def _find_mismatch(server: LogRecord, site: LogRecord) -> str | None:
    """Find out why the two logs do not belong together: one was made anew, or has another name or plan.

    Returns:
        Description of the mismatch; None if there is none.
    """
    for entry in server.rare_entries("witnessed"):
        same_name, same_log = entry["name"] == site.subject, entry["log"] == site.origin
        if same_name != same_log:
            return f"entry {entry['number']} of the server's log has seen this log or this name with another"
    runs: dict[str, set[str]] = {}  # a run that is resumed with other code has another plan
    for entry in server.rare_entries("announced"):
        runs.setdefault(entry["run"], set()).add(entry["plan"])
    admitted = {
        entry["run"]: entry["number"] for entry in server.rare_entries("admitted") if entry["site"] == site.subject
    }
    keys = {key.hex for key in server.keys}
    for entry in site.rare_entries("witnessed"):
        if entry["run"] in runs and entry["log"] != server.origin:
            return f"entry {entry['number']}: the site has seen another log of the server for the same run"
    for entry in site.rare_entries("plan"):
        try:
            plan = SignedPlan.from_text(entry["signed"]).plan
        except (PrivacyError, ValueError):
            continue  # the site's own checks report it
        if plan.run in runs and (entry["server"] not in keys or plan.sha256 not in runs[plan.run]):
            return f"entry {entry['number']}: the site admitted another plan for this run than the server announced"
        admitted.pop(plan.run, None)
    if admitted:
        number = min(admitted.values())
        return f"entry {number} of the server's log admits it to a run of which its own log shows no plan"
    known = {entry["key"] for entry in server.rare_entries("admitted") if entry["site"] == site.subject} - {None}
    known |= {entry["key"] for entry in server.rare_entries("witnessed") if entry["name"] == site.subject}
    if known and not known & {key.hex for key in site.keys}:
        return "the server knew this site by another key"
    return None


def _select_witnessed(site: LogRecord, server: LogRecord) -> list[dict[str, Any]]:
    """Return the entries by which a site's log has seen that server's log."""
    return [entry for entry in site.rare_entries("witnessed") if entry["log"] == server.origin]


def _check_seen(name: str, log: LogRecord, entries: list[dict[str, Any]], by: str, of: str | None = None) -> Check:
    """Check that a log is what another log has seen of it.

    Args:
        name: Name of the check.
        log: The log that was seen.
        entries: Entries of the other log, each with a signed tree head of this one.
        by: Owner of the other log.
        of: Subject of the check; the log's owner without it.
    """
    subject = of or log.subject
    keys = {key.hex for key in log.keys}
    for entry in entries:
        seen = SignedTreeHead.from_fields(log.origin, entry)
        where = f"entry {entry['number']} of {by}'s log"
        if entry["key"] not in keys or not seen.is_by(PublicKey.from_hex(entry["key"])):
            return _make_check(
                name, False, f"{where} shows a checkpoint by a key that {log.subject}'s log has not", subject
            )
        if seen.size > log.size:
            detail = f"entry {log.size + 1} of {log.subject}'s log and all after it were cut off: {where} has seen "
            return _make_check(name, False, f"{detail}{seen.size} entries", subject)
        if log.compute_root(seen.size) != seen.root:
            detail = f"entries 1 to {seen.size} of {log.subject}'s log are not those that {where} has seen"
            return _make_check(name, False, detail, subject)
    if not entries:
        return _make_check(name, None, f"{by}'s log has seen nothing of {log.subject}'s yet", subject)
    last = max(entry["size"] for entry in entries)
    return _make_check(name, True, f"up to entry {last} of {log.size} of {log.subject}'s log", subject)


def _check_sealed(server: LogRecord, site: LogRecord) -> Check:
    """Check that the server has countersigned all that left the site in its runs."""
    runs = {entry["run"] for entry in server.rare_entries("begun")}
    last = max((group.last for group in site.scan.groups.values() if group.fields["run"] in runs), default=0)
    keys = {key.hex for key in server.keys}
    countersigned = max(
        (entry["size"] for entry in site.rare_entries("countersigned") if entry["by"] in keys), default=0
    )
    detail = (
        f"the server countersigned the first {countersigned} entries; the last release to it is entry {last or 'none'}"
    )
    elsewhere = not last and bool(site.scan.groups)
    passed = bool(countersigned) and countersigned >= last and not elsewhere
    took_part = any(entry["site"] == site.subject for entry in server.rare_entries("admitted"))
    return _make_check("sealed", passed or None, detail, site.subject, missing=took_part)


def _check_anchors(site: LogRecord, accepted: list[AcceptedUpdate]) -> Check:
    """Check that the site's log contains the anchor of each of its updates, which says where the log stood."""
    anchored = sorted((u for u in accepted if u.anchor is not None), key=lambda u: int(str(u.anchor).partition(":")[0]))
    checked = 0
    for update in anchored:
        rows = int(str(update.anchor).partition(":")[0])
        if not site.contains_anchor(str(update.anchor)):
            detail = f"an entry from {checked + 1} to {rows} was changed or cut: the server saw another in round"
            return _make_check("anchors", False, f"{detail} {update.round}", site.subject)
        checked = rows
    if not accepted:
        return _make_check("anchors", None, "the server took no update of it", site.subject)
    if not anchored:
        return _make_check("anchors", None, "without noise, updates show no anchor of the site's log", site.subject)
    return _make_check("anchors", True, f"{len(anchored)} updates, each shows where the log stood", site.subject)


def _check_earlier_anchors(server: LogRecord, site: LogRecord) -> list[Check]:
    """Check that the site's log still has what the server had seen of it in earlier runs when it admitted the site.

    This finds a log that was restored from an older copy between two runs; what happens within a run is checked
    elsewhere.
    """
    admitted = [
        entry for entry in server.rare_entries("admitted") if entry["site"] == site.subject and entry.get("anchor")
    ]
    for entry in admitted:
        if not site.contains_anchor(entry["anchor"]):
            rows = entry["anchor"].partition(":")[0]
            detail = f"entry {entry['number']} of the server's log: it had seen {rows} entries of this log before that"
            conclusion = "this log shows others: an older copy was put back, or it was made anew"
            return [_make_check("earlier anchor", False, f"{detail}, and {conclusion}", site.subject)]
    if not admitted:
        return []
    detail = f"{len(admitted)} times admitted, and the log shows each time where the server had seen it before"
    return [_make_check("earlier anchor", True, detail, site.subject)]


def _check_received(server: LogRecord, site: LogRecord, accepted: list[AcceptedUpdate]) -> Check:
    """Check that each accepted update is a release of the site's, of the same bytes.

    Under noise, it must also be a release of the same round.
    """
    resent, noised_runs = {entry["release"] for entry in site.rare_entries("resent")}, _find_noised_runs(server)
    for update in accepted:
        release = site.scan.find_release(update.release, update.round)
        if release is None:
            detail = (
                f"entry {update.number} of the server's log: an update of round {update.round} that the site's log "
            )
            return _make_check("releases received", False, f"{detail}does not show", site.subject)
        number, size, at = release
        if update.measures is not None and not _shows_measures(site, update):
            detail = f"entry {update.number} of the server's log: measures of round {update.round} that the site's log "
            return _make_check("releases received", False, f"{detail}does not show", site.subject)
        # Without noise the same bytes may have left in another round or run, and are charged once; noise is fresh.
        if update.release.hex() in resent and update.run not in noised_runs:
            continue
        if at != update.round or size not in (0, update.size):
            detail = f"entry {number}: a release of {size} bytes in round {at}; the server took {update.size} in round "
            return _make_check("releases received", False, f"{detail}{update.round}", site.subject)
    runs = {entry["run"] for entry in server.rare_entries("begun")}
    released = sum(group.count for group in site.scan.groups.values() if group.fields["run"] in runs)
    measures = sum(
        group.count
        for group in site.scan.groups.values()
        if group.fields["run"] in runs and group.fields["purpose"] == "metrics"
    )
    unused = released - measures - len({update.release for update in accepted})
    more = f"; {unused} more were charged for, and not folded in" if unused > 0 else ""
    return _make_check(
        "releases received", True, f"{len(accepted)} updates are those that the site released{more}", site.subject
    )


def _find_noised_runs(server: LogRecord) -> set[str]:
    """Return the runs whose plans ask for noise."""
    runs = set()
    for entry in server.rare_entries("announced"):
        try:
            spec = SignedPlan.from_text(entry["signed"]).plan.spec
        except (PrivacyError, ValueError):
            continue  # the server's own checks report it
        if spec.noise.mechanism is not None:
            runs.add(entry["run"])
    return runs


def _shows_measures(site: LogRecord, update: AcceptedUpdate) -> bool:
    """Return whether the site's log shows the measures beside an update, by the hash that the gate charges for."""
    content = canonical_json({**(update.measures or {}), "run": update.run, "round": update.round})
    return hashlib.sha256(content).digest() in site.scan.releases
