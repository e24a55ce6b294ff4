"""Verifies a run's server: its log by itself, and the run's files against it."""

from pathlib import Path
from typing import Final

from fedglm.audit.records.checks import Check
from fedglm.audit.records.log_lines import check_lines
from fedglm.audit.records.log_records import KnownKeys, LogRecord, read_log
from fedglm.audit.records.log_summary import AcceptedUpdate
from fedglm.audit.records.run_files import RunFiles
from fedglm.audit.verify.light_release import check_light_release
from fedglm.core.processes.worker_pool import map_in_processes
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.policy.run_plan import SignedPlan
from fedglm.protocol.signatures import is_signed_reply
from fedglm.run_folder.names import DONE, ROUNDS, SUMMARY

_PIECE: Final = 10_000
"""Updates whose signatures one process verifies; a signature takes longer than all else about an update."""

_COUNTED_FIELDS = ("uplink_bytes", "downlink_bytes", "accepted", "rejected")
"""Fields of an entry about a round, in the order of `run_files.COUNTS`."""


def audit_server(path: Path, files: RunFiles, known: KnownKeys) -> tuple[LogRecord | None, list[Check]]:
    """Verify a server's log by itself, and the run's files against it.

    Args:
        path: Path of the log's file.
        files: Files of the run.
        known: See `read_log`.

    Returns:
        The log, or None if it cannot be read, and the checks.
    """
    record, checks = read_log(path, "server", "server", known=known)
    if record is None:
        return None, checks
    run_checks = [
        _check_plans(record),
        _check_site_signatures(record),
        _check_rounds(record, files),
        _check_model(record, files),
        *check_light_release(record, files),
    ]
    mismatches = [_make_check("summary", False, files.mismatch)] if files.mismatch else []
    return record, [*checks, *check_lines(record), *run_checks, *mismatches]


def _make_check(name: str, passed: bool | None, detail: str, *, missing: bool = False) -> Check:
    return Check(subject="server", name=name, passed=passed, detail=detail, missing=missing)


def _check_plans(record: LogRecord) -> Check:
    """Check that each plan that the server announced is signed by it, and of the run that the entry names."""
    keys = {key.hex for key in record.keys}
    for entry in record.rare_entries("announced"):
        try:
            signed = SignedPlan.from_text(entry["signed"])
        except (PrivacyError, ValueError) as exc:
            return _make_check("plans", False, f"entry {entry['number']}: {exc}")
        if (signed.plan.sha256, signed.plan.run) != (entry["plan"], entry["run"]) or signed.server.hex not in keys:
            return _make_check("plans", False, f"entry {entry['number']}: it shows another plan than it names")
    runs = sorted({entry["run"] for entry in record.rare_entries("announced")})
    if unplanned := sorted({entry["run"] for entry in record.rare_entries("begun")} - set(runs)):
        return _make_check("plans", None, f"no plan was announced of run {unplanned[0]}, which began", missing=True)
    detail = f"{len(record.rare_entries('announced'))} announced, each signed by the server"
    return _make_check("plans", True, detail + (f": run {', '.join(runs)[:200]}" if runs else ""))


def _check_site_signatures(record: LogRecord) -> Check:
    """Check that each accepted update is signed by its site, if sites sign."""
    keyed, stranger = _match_keys(record)
    pieces = [(keyed[start : start + _PIECE],) for start in range(0, len(keyed), _PIECE)]
    if (unsigned := next(filter(None, map_in_processes(_find_unsigned, pieces)), None)) is not None:
        detail = f"entry {unsigned.number}: the update of {unsigned.site} in round {unsigned.round} is not signed by it"
        return _make_check("updates", False, detail)
    if stranger is not None:
        revoked = [entry for entry in record.rare_entries("revoked") if entry["number"] < stranger.number]
        cause = "was revoked" if any(entry["site"] == stranger.site for entry in revoked) else "was not admitted"
        detail = f"entry {stranger.number}: an update of {stranger.site}, which {cause} before"
        return _make_check("updates", False, detail)
    total = len(record.scan.accepted)
    signed = [update for update in record.scan.accepted if update.signature is not None]
    if signed and len(signed) < total:
        return _make_check(
            "updates", False, f"{total - len(signed)} of {total} updates are not signed, and the others are"
        )
    if not total:
        return _make_check("updates", None, "none was taken")
    if not signed:
        return _make_check(
            "updates", None, f"{total} taken; sites and server were one machine, and signed none of them"
        )
    return _make_check("updates", True, f"{total} taken, each signed by its site")


def _match_keys(record: LogRecord) -> tuple[list[tuple[str, AcceptedUpdate]], AcceptedUpdate | None]:
    """Match updates with the keys (hex) that must have signed them.

    Returns:
        Pairs of key and update, and the first update of a site that had not been admitted before, where matching ends;
        None for none.
    """
    changes = [*record.rare_entries("admitted"), *record.rare_entries("revoked")]
    changes.sort(key=lambda entry: entry["number"], reverse=True)
    keys = dict[str, str | None]()
    keyed: list[tuple[str, AcceptedUpdate]] = []
    for update in record.scan.accepted:
        while changes and changes[-1]["number"] < update.number:
            # A site may return with a new key: the one that it was last admitted with counts.
            entry = changes.pop()
            if entry["kind"] == "revoked":
                keys.pop(entry["site"], None)
            else:
                keys[entry["site"]] = entry["key"]
        if update.site not in keys:
            return keyed, update
        if (key := keys[update.site]) is not None:
            keyed.append((key, update))
    return keyed, None


def _find_unsigned(updates: list[tuple[str, AcceptedUpdate]]) -> AcceptedUpdate | None:
    """Return the first update that is not signed by the key that must have signed it; None for none."""
    return next((update for key, update in updates if not _is_signed(update, key)), None)


def _is_signed(update: AcceptedUpdate, key: str) -> bool:
    return update.signature is not None and is_signed_reply(
        PublicKey.from_hex(key),
        run=update.run,
        server_round=update.round,
        nonce=update.nonce,
        log=update.anchor,
        release=update.release.hex(),
        metrics=update.measures or {},
        signature=update.signature,
    )


def _check_rounds(record: LogRecord, files: RunFiles) -> Check:
    """Check that rounds follow each other, and agree with `rounds.jsonl` in every count and byte of a row."""
    published = record.rare_entries("published")
    newest = {entry["round"]: entry["number"] for entry in published}  # the last entry of a round that was repeated
    rows = dict(enumerate(files.rows or [], 1))
    accepted: dict[int, list[AcceptedUpdate]] = {}
    for update in record.scan.accepted:
        accepted.setdefault(update.round, []).append(update)
    last = since = 0
    for entry in sorted([*published, *record.rare_entries("begun")], key=lambda entry: entry["number"]):
        number, of_round = entry["number"], entry["round"]
        if entry["kind"] == "begun":
            if of_round > last:
                return _make_check("rounds", False, f"entry {number}: it goes on after round {of_round}, not {last}")
            last, since = of_round, number
            continue
        if of_round != last + 1:
            return _make_check("rounds", False, f"entry {number}: round {of_round} follows round {last}")
        last = of_round
        if (
            len({update.site for update in accepted.get(last, []) if since < update.number < number})
            != entry["accepted"]
        ):
            return _make_check("rounds", False, f"entry {number}: it counts updates that the log does not show")
        if last not in rows or number != newest[last]:
            continue
        for name, count in zip(_COUNTED_FIELDS, rows[last].counts, strict=True):
            if count != entry[name]:
                return _make_check("rounds", False, f"entry {number}: round {last} has other {name} in {ROUNDS}")
        if entry.get("row") not in (None, rows[last].sha256):
            return _make_check("rounds", False, f"entry {number}: round {last} has another row in {ROUNDS} than it had")
    under_way = not record.rare_entries("finished")  # the log is written before the file
    lines = last if files.rows is None else len(files.rows)
    if lines != last and not (under_way and lines == last - 1):
        return _make_check("rounds", False, f"the log shows {last} rounds, rounds.jsonl has {lines}")
    ended = record.rare_entries("finished")[-1:]
    if ended and ended[0]["rounds"] != last:
        detail = f"it ends the run after {ended[0]['rounds']} rounds, and the log shows {last}"
        return _make_check("rounds", False, f"entry {ended[0]['number']}: {detail}")
    if files.rows is None:
        is_missing = files.is_requested and bool(published)
        return _make_check(
            "rounds", None if is_missing else True, f"{last}, and there is no {ROUNDS}", missing=is_missing
        )
    without_row = sum("row" not in entry for entry in published)
    more = (
        f"; of {without_row} rounds the log shows no more of a row than its bytes"
        if without_row
        else ", and each row as it was"
    )
    return _make_check("rounds", True, f"{last}, with the bytes that {ROUNDS} shows{more}")


def _check_model(record: LogRecord, files: RunFiles) -> Check:
    """Check that the resulting model is that of the last round, and the one in the run's files."""
    finished, published = record.rare_entries("finished"), record.rare_entries("published")
    if not finished:
        return _make_check("model", None, "the run is not finished", missing=files.is_requested)
    model = finished[-1]["model"]
    if published and published[-1]["model"] != model:
        return _make_check("model", False, f"entry {finished[-1]['number']}: the model is not that of the last round")
    if files.model not in (None, model):
        return _make_check("model", False, f"entry {finished[-1]['number']}: the run's files show another model")
    for entry in record.rare_entries("given"):
        if entry["model"] != model:
            detail = f"{entry['site']} holds a model that is not the run's"
            return _make_check("model", False, f"entry {entry['number']}: {detail}")
    result = DONE if any(entry["key"] for entry in record.rare_entries("admitted")) else SUMMARY
    if files.is_requested and result not in files.results:
        return _make_check("model", None, f"{model[:16]}, and there is no {result}", missing=True)
    detail = "as the run's files show" if files.model else "and no file of the run names one"
    holders = {entry["site"] for entry in record.rare_entries("given")}
    kept = f"; {len(holders)} sites say that they hold it" if holders else ""
    return _make_check("model", True, f"{model[:16]}, {detail}{kept}")
