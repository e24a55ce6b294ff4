"""Verification of a run: the server's log by itself, each site's by itself, and all of them against each other.

What one side cannot rewrite is what the other has seen: the server's log shows how each site's stood after every update
that it took, and each site's log shows how the server's stood when they sealed them.
"""

import hashlib
from pathlib import Path
from typing import Any, Final

from fedglm.privacy.audit_checks import Check
from fedglm.privacy.audit_lines import audit_lines
from fedglm.privacy.audit_log import KnownKeys, LogRecord, read_log
from fedglm.privacy.canonical import canonical_json
from fedglm.privacy.checkpoint import Checkpoint
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys import PublicKey
from fedglm.privacy.log_summary import Accepted
from fedglm.privacy.plan import SignedPlan
from fedglm.privacy.run_files import DONE, ROUNDS, SUMMARY, RunFiles
from fedglm.privacy.signed_messages import is_reported
from fedglm.privacy.workers import in_processes

_PIECE: Final = 10_000
"""Updates whose signatures are looked at by one process; each takes longer than all else about it."""

_COUNTED = ("uplink_bytes", "downlink_bytes", "accepted", "rejected")
"""What an entry about a round counts, in the order of `run_files.COUNTS`."""


def audit_server(path: Path, files: RunFiles, known: KnownKeys) -> tuple[LogRecord | None, list[Check]]:
    """Verify a server's log by itself, and hold it to the run's files.

    Args:
        path: Of the log's file.
        files: Of the run.
        known: As of `read_log`.

    Returns:
        The log, None where it cannot be read, and the checks.
    """
    record, checks = read_log(path, "server", "server", known=known)
    if record is None:
        return None, checks
    own = [_announced(record), _site_signatures(record), _rounds(record, files), _result(record, files)]
    odd = [_check("summary", False, files.odd)] if files.odd else []
    return record, [*checks, *audit_lines(record), *own, *odd]


def _check(name: str, held: bool | None, said: str, subject: str = "server", *, missing: bool = False) -> Check:
    return Check(subject=subject, name=name, held=held, said=said, missing=missing)


def _announced(record: LogRecord) -> Check:
    """Each plan that the server announced is signed by it, and of the run that it says."""
    keys = {key.hex for key in record.keys}
    for entry in record.of_kind("announced"):
        try:
            signed = SignedPlan.from_text(entry["signed"])
        except (PrivacyError, ValueError) as exc:
            return _check("plans", False, f"entry {entry['number']}: {exc}")
        if (signed.plan.sha256, signed.plan.run) != (entry["plan"], entry["run"]) or signed.server.hex not in keys:
            return _check("plans", False, f"entry {entry['number']}: it shows another plan than it names")
    runs = sorted({entry["run"] for entry in record.of_kind("announced")})
    if bare := sorted({entry["run"] for entry in record.of_kind("begun")} - set(runs)):
        return _check("plans", None, f"no plan was announced of run {bare[0]}, which began", missing=True)
    said = f"{len(record.of_kind('announced'))} announced, each signed by the server"
    return _check("plans", True, said + (f": run {', '.join(runs)[:200]}" if runs else ""))


def _site_signatures(record: LogRecord) -> Check:
    """Each update that the server took is signed by the site, where sites sign."""
    held_to, stranger = _held_to(record)
    pieces = [(held_to[start : start + _PIECE],) for start in range(0, len(held_to), _PIECE)]
    if (odd := next(filter(None, in_processes(_unsigned, pieces)), None)) is not None:
        said = f"entry {odd.number}: the update of {odd.site} in round {odd.round} is not signed by it"
        return _check("updates", False, said)
    if stranger is not None:
        said = f"entry {stranger.number}: an update of {stranger.site}, which was not admitted before"
        return _check("updates", False, said)
    total = len(record.scan.accepted)
    signed = [update for update in record.scan.accepted if update.signature is not None]
    if signed and len(signed) < total:
        return _check("updates", False, f"{total - len(signed)} of {total} updates are not signed, and the others are")
    if not total:
        return _check("updates", None, "none was taken")
    if not signed:
        return _check("updates", None, f"{total} taken; sites and server were one machine, and signed none of them")
    return _check("updates", True, f"{total} taken, each signed by its site")


def _held_to(record: LogRecord) -> tuple[list[tuple[str, Accepted]], Accepted | None]:
    """Updates, each with the key (hex) that must have signed it, up to the first of a site that was not admitted."""
    admitted, keys = record.of_kind("admitted")[::-1], dict[str, str | None]()
    found: list[tuple[str, Accepted]] = []
    for update in record.scan.accepted:
        while admitted and admitted[-1]["number"] < update.number:
            # A site may come back with a new key: the one that it was admitted with last counts.
            entry = admitted.pop()
            keys[entry["site"]] = entry["key"]
        if update.site not in keys:
            return found, update
        if (key := keys[update.site]) is not None:
            found.append((key, update))
    return found, None


def _unsigned(updates: list[tuple[str, Accepted]]) -> Accepted | None:
    """The first of some updates that is not signed by the key that it is held to."""
    return next((update for key, update in updates if not _is_signed(update, key)), None)


def _is_signed(update: Accepted, key: str) -> bool:
    return update.signature is not None and is_reported(
        PublicKey.from_hex(key),
        run=update.run,
        server_round=update.round,
        nonce=update.nonce,
        log=update.anchor,
        release=update.release.hex(),
        metrics=update.measures or {},
        signature=update.signature,
    )


def _rounds(record: LogRecord, files: RunFiles) -> Check:
    """Rounds follow each other, and are those of `rounds.jsonl`, byte for byte of traffic."""
    published = record.of_kind("published")
    newest = {entry["round"]: entry["number"] for entry in published}  # of a round that was made again
    rows = dict(enumerate(files.rows or [], 1))
    taken: dict[int, list[Accepted]] = {}
    for update in record.scan.accepted:
        taken.setdefault(update.round, []).append(update)
    last = since = 0
    for entry in sorted([*published, *record.of_kind("begun")], key=lambda entry: entry["number"]):
        number, of_round = entry["number"], entry["round"]
        if entry["kind"] == "begun":
            if of_round > last:
                return _check("rounds", False, f"entry {number}: it goes on after round {of_round}, not {last}")
            last, since = of_round, number
            continue
        if of_round != last + 1:
            return _check("rounds", False, f"entry {number}: round {of_round} follows round {last}")
        last = of_round
        if len({update.site for update in taken.get(last, []) if since < update.number < number}) != entry["accepted"]:
            return _check("rounds", False, f"entry {number}: it counts updates that the log does not show")
        if last not in rows or number != newest[last]:
            continue
        for name, count in zip(_COUNTED, rows[last].counts, strict=True):
            if count != entry[name]:
                return _check("rounds", False, f"entry {number}: round {last} has other {name} in {ROUNDS}")
        if entry.get("row") not in (None, rows[last].sha256):
            return _check("rounds", False, f"entry {number}: round {last} has another row in {ROUNDS} than it had")
    under_way = not record.of_kind("finished")  # the log is written first
    lines = last if files.rows is None else len(files.rows)
    if lines != last and not (under_way and lines == last - 1):
        return _check("rounds", False, f"the log shows {last} rounds, rounds.jsonl has {lines}")
    ended = record.of_kind("finished")[-1:]
    if ended and ended[0]["rounds"] != last:
        said = f"it ends the run after {ended[0]['rounds']} rounds, and the log shows {last}"
        return _check("rounds", False, f"entry {ended[0]['number']}: {said}")
    if files.rows is None:
        lacking = files.asked and bool(published)
        return _check("rounds", None if lacking else True, f"{last}, and there is no {ROUNDS}", missing=lacking)
    unheld = sum("row" not in entry for entry in published)
    more = (
        f"; of {unheld} rounds the log shows no more of a row than its bytes" if unheld else ", and each row as it was"
    )
    return _check("rounds", True, f"{last}, with the bytes that {ROUNDS} shows{more}")


def _result(record: LogRecord, files: RunFiles) -> Check:
    finished, published = record.of_kind("finished"), record.of_kind("published")
    if not finished:
        return _check("model", None, "the run is not finished", missing=files.asked)
    model = finished[-1]["model"]
    if published and published[-1]["model"] != model:
        return _check("model", False, f"entry {finished[-1]['number']}: the model is not that of the last round")
    if files.model not in (None, model):
        return _check("model", False, f"entry {finished[-1]['number']}: the run's files show another model")
    result = DONE if any(entry["key"] for entry in record.of_kind("admitted")) else SUMMARY
    if files.asked and result not in files.results:
        return _check("model", None, f"{model[:16]}, and there is no {result}", missing=True)
    said = "as the run's files show" if files.model else "and no file of the run names one"
    return _check("model", True, f"{model[:16]}, {said}")


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
        seen = Checkpoint.from_fields(log.origin, entry)
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
            said = f"entry {entry['number']} of the server's log: it had seen {rows} entries of this log before the run"
            back = "this log shows others: an older copy was put back, or it was made anew"
            return [_check("earlier anchor", False, f"{said}, and {back}", site.subject)]
    if not admitted:
        return []
    said = f"{len(admitted)} times admitted, and the log shows each time where the server had seen it before"
    return [_check("earlier anchor", True, said, site.subject)]


def _received(server: LogRecord, site: LogRecord, taken: list[Accepted]) -> Check:
    """Each update that the server took is a release of the site's, of the same bytes."""
    again = {entry["release"] for entry in site.of_kind("resent")}
    for update in taken:
        known = site.scan.release_in(update.release, update.round)
        if known is None:
            said = f"entry {update.number} of the server's log: an update of round {update.round} that the site's log "
            return _check("releases received", False, f"{said}does not show", site.subject)
        number, size, at = known
        if update.measures is not None and not _measured(site, update):
            said = f"entry {update.number} of the server's log: measures of round {update.round} that the site's log "
            return _check("releases received", False, f"{said}does not show", site.subject)
        if update.release.hex() in again:  # the same bytes, in another round or run
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
    more = f"; {left_over} more left, and were not folded in" if left_over > 0 else ""
    return _check(
        "releases received", True, f"{len(taken)} updates are those that the site released{more}", site.subject
    )


def _measured(site: LogRecord, update: Accepted) -> bool:
    """Whether the site's log shows the measures beside an update, by the hash that the gate charges for."""
    told = canonical_json({**(update.measures or {}), "run": update.run, "round": update.round})
    return hashlib.sha256(told).digest() in site.scan.releases
