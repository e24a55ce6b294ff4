"""Verification of a run's server: its log by itself, and the run's files."""

from pathlib import Path
from typing import Final

from fedglm.audit.records.checks import Check
from fedglm.audit.records.log_lines import audit_lines
from fedglm.audit.records.log_records import KnownKeys, LogRecord, read_log
from fedglm.audit.records.log_summary import Accepted
from fedglm.audit.records.run_files import RunFiles
from fedglm.core.processes import in_processes
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.policy.run_plan import SignedPlan
from fedglm.protocol.signatures import is_reported
from fedglm.run_folder.names import DONE, ROUNDS, SUMMARY

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


def _check(name: str, held: bool | None, said: str, *, missing: bool = False) -> Check:
    return Check(subject="server", name=name, held=held, said=said, missing=missing)


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
