"""A run in progress, read from its folder: rounds, bytes, and the state of each site.

It reads the files that `run_log.RunLog` and simulations write, and needs neither torch nor Flower. A file that does not
exist yet counts as empty, and a line that a killed process left half-written is counted, not read. Texts from nodes and
sites are cut to printable characters here.
"""

import json
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from fedglm.core.untrusted_text import clean_text
from fedglm.run_folder.names import DONE, EVENTS, FAILED, ROUNDS, RUN, SCENARIO, SUMMARY
from fedglm.run_folder.traffic import Traffic

PHASES = ("first-answer", "other-answers", "closing")
"""Parts of a round: until the first reply, until the last reply, until the round was on disk."""

_LONGEST_REASON = 500

Row = dict[str, Any]
State = Literal["prepared", "running", "done", "lost", "failed"]


@dataclass
class SiteView:
    """State of one site in a run.

    Attributes:
        name: Name of the site.
        answers: Number of rounds in which its update was aggregated.
        rejected: Number of rounds in which its update was rejected.
        last_round: Number of the latest round in which it replied; None for none.
        last_time: Time of that reply; None where the folder contains no events.
        last_fault: Reason why its latest update was rejected; None where that one was aggregated.
        absent: Number of finished rounds that got no update of it because it was not connected.
    """

    name: str
    answers: int = 0
    rejected: int = 0
    absent: int = 0
    last_round: int | None = None
    last_time: datetime | None = None
    last_fault: str | None = None


@dataclass(frozen=True)
class NonParticipant:
    """A node that does not take part.

    Attributes:
        time: Time when it refused or was rejected.
        node: Flower's ID of the node.
        reason: Reason for it.
        site: Name of its site; None where it is not known.
    """

    time: datetime
    node: str
    reason: str
    site: str | None = None

    @property
    def name(self) -> str:
        """Name of its site, else Flower's ID of the node."""
        return self.site or self.node


@dataclass(frozen=True)
class OfflineSite:
    """A site whose node is not connected.

    Attributes:
        name: Name of the site.
        since: Time when it was first seen so.
        is_absent: Whether it has been for so long that no round waits for it.
    """

    name: str
    since: datetime
    is_absent: bool


@dataclass(frozen=True)
class RevokedSite:
    """A site that was revoked while the run went on.

    Attributes:
        name: Name of the site.
        time: Time when the run dropped it.
        reason: Reason for it.
    """

    name: str
    time: datetime
    reason: str


@dataclass(frozen=True, kw_only=True)
class RunView:
    """Snapshot of a run.

    Attributes:
        name: Name of the run's folder.
        state: State of the run; `lost` where its server process ended by an error that a retry may not meet.
        rounds: Number of rounds that the run will have; None where the folder does not say.
        rows: Lines of `rounds.jsonl`, one for each finished round.
        metric: `accuracy`, `perplexity` or None.
        traffic: Traffic of all finished rounds.
        accepted: Number of updates that were aggregated in finished rounds.
        rejected: Number of updates that were rejected in finished rounds.
        round: Number of the round in progress; None between rounds and where there are no events.
        sampled: Number of nodes sampled for that round.
        replies: Number of those nodes that have replied.
        awaited: Names of the sites that the round in progress waits for; empty where the folder does not say.
        offline: Sites that are not connected, by name.
        revoked_sites: Sites that were revoked while the run went on, by name.
        absences: Number of updates that finished rounds did not get because a site was not connected.
        sites: Sites that were asked or have replied, by name.
        refused: Nodes whose own policy refuses the plan, by site or ID, each with its latest refusal.
        rejected_nodes: Nodes that the server does not admit, by site or ID, each with its latest rejection.
        phases: Seconds of all finished rounds by `PHASES`; empty where there are no events.
        began: Time when the run began or was resumed; None where there are no events.
        last_round_time: Time when the latest round was written to disk.
        last_event: Time of the latest event.
        model_sha256: SHA-256 of the final model; None before the end.
        failure: Reason why the run is `lost` or `failed`.
        unreadable: Number of lines that could not be read.
    """

    name: str
    state: State
    rounds: int | None
    rows: list[Row]
    metric: str | None
    traffic: Traffic
    accepted: int
    rejected: int
    round: int | None
    sampled: int
    replies: int
    awaited: tuple[str, ...]
    offline: dict[str, OfflineSite]
    revoked_sites: dict[str, RevokedSite]
    absences: int
    sites: dict[str, SiteView]
    refused: dict[str, NonParticipant]
    rejected_nodes: dict[str, NonParticipant]
    phases: dict[str, float]
    began: datetime | None
    last_round_time: datetime | None
    last_event: datetime | None
    model_sha256: str | None
    failure: str | None
    unreadable: int


def is_run(folder: Path) -> bool:
    """Return whether the folder contains a run, started or only prepared."""
    return any((folder / name).is_file() for name in (ROUNDS, EVENTS, RUN, SCENARIO))


def read_view(folder: Path) -> RunView:
    """Read the state of a run from its folder.

    Raises:
        OSError: One of its files cannot be read.
    """
    (rows, bad_rows), (events, bad_events) = _read_lines(folder / ROUNDS), _read_lines(folder / EVENTS)
    totals = _EventTotals()
    for event in events:
        totals.add(event)
    absences = _count_absences(rows)
    done, failed = _read_object(folder / DONE), _read_object(folder / FAILED)
    summary = _read_object(folder / SUMMARY) if not events else {}
    return RunView(
        name=folder.absolute().name,
        state=_derive_state(rows, events, done or summary, failed),
        rounds=_read_planned_rounds(folder),
        rows=rows,
        metric=next((name for name in ("accuracy", "perplexity") if rows and name in rows[-1]), None),
        traffic=Traffic(
            *(_sum_column(rows, f"{way}_bytes") for way in ("uplink", "downlink", "dense_uplink", "dense_downlink"))
        ),
        accepted=_sum_column(rows, "nodes_accepted"),
        rejected=_sum_column(rows, "nodes_rejected"),
        round=None if done or failed else totals.round,
        sampled=totals.sampled,
        replies=len(totals.replied),
        awaited=() if done or failed else totals.awaited(),
        offline=totals.offline,
        revoked_sites=totals.revoked,
        absences=sum(absences.values()),
        sites=totals.sites(absences) if events else _collect_rejected_sites(rows),
        refused=totals.refused,
        rejected_nodes=totals.rejected_nodes,
        phases=totals.phases,
        began=totals.began,
        last_round_time=totals.last_round_time,
        last_event=totals.last_event,
        model_sha256=_clean_text((done or summary).get("model_sha256")),
        failure=_clean_text(failed.get("reason")),
        unreadable=bad_rows + bad_events,
    )


@dataclass
class _EventTotals:
    """Totals over the events; a round that was started again after a crash counts once."""

    round: int | None = None
    sampled: int = 0
    replied: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    offline: dict[str, OfflineSite] = field(default_factory=dict)
    revoked: dict[str, RevokedSite] = field(default_factory=dict)
    refused: dict[str, NonParticipant] = field(default_factory=dict)
    rejected_nodes: dict[str, NonParticipant] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    began: datetime | None = None
    last_round_time: datetime | None = None
    last_event: datetime | None = None
    _replies: dict[tuple[str, int], tuple[datetime, str | None]] = field(default_factory=dict)
    _timeline: list[datetime] = field(default_factory=list)

    def add(self, event: Row) -> None:
        """Add one event; one without a valid time and kind is ignored."""
        try:
            time, kind = datetime.fromisoformat(event["time"]), event["event"]
        except (KeyError, TypeError, ValueError):
            return
        self.last_event = time
        self.began = self.began or time
        number, node = _as_count(event.get("round")), _clean_text(event.get("node")) or ""
        if kind in ("begun", "resumed"):
            # The server's process is a new one: who is offline it sees anew, and who was revoked it does not ask.
            self.began, self.round, self.asked, self.offline = time, None, set(), {}
        elif kind == "round":
            self.round, self.sampled = number, _as_count(event.get("sampled"))
            self.replied, self.asked, self._timeline = set(), set(), [time]
        elif kind == "asked":
            sites = event.get("sites")
            asked = {_clean_text(name) or "" for name in sites} if isinstance(sites, list) else set()
            self.asked |= asked
            self.revoked = {name: site for name, site in self.revoked.items() if name not in asked}  # it has new keys
        elif kind in ("offline", "absent", "online", "revoked"):
            self._change_presence(kind, node, time, event)
        elif kind in ("reply", "rejected"):
            fault = (_clean_text(event.get("reason")) or "no reason was given") if kind == "rejected" else None
            self._replies[node, number] = time, fault
            self.replied.add(node)
            self._timeline.append(time)
        elif kind == "done":
            self._close_round(time)
        elif kind in ("refused", "turned-away"):
            nodes = self.refused if kind == "refused" else self.rejected_nodes
            entry = NonParticipant(time, node, _clean_text(event.get("reason")) or "", _clean_text(event.get("site")))
            nodes.pop(entry.name, None)  # so that the latest stands last
            nodes[entry.name] = entry

    def _change_presence(self, kind: str, name: str, time: datetime, event: Row) -> None:
        if kind == "revoked":
            self.offline.pop(name, None)
            self.revoked[name] = RevokedSite(name, time, _clean_text(event.get("reason")) or "")
        elif kind == "online":
            self.offline.pop(name, None)
        else:
            try:
                since = datetime.fromisoformat(event["since"])
            except (KeyError, TypeError, ValueError):
                since = time
            self.offline[name] = OfflineSite(name, since, kind == "absent")

    def awaited(self) -> tuple[str, ...]:
        """Return the names of the sites that were asked in the round in progress and have not replied."""
        if self.round is None:
            return ()
        absent = {name for name, site in self.offline.items() if site.is_absent}
        return tuple(sorted(self.asked - self.replied - absent - self.revoked.keys()))

    def sites(self, absences: Counter[str]) -> dict[str, SiteView]:
        """Return every site that was asked or has replied, by name; `absences` are the rounds without it."""
        known = sorted({*self.asked, *self.offline, *self.revoked, *absences})
        sites = {name: SiteView(name, absent=absences[name]) for name in known}
        for (name, number), (time, fault) in sorted(self._replies.items()):
            site = sites.setdefault(name, SiteView(name))
            site.answers += fault is None
            site.rejected += fault is not None
            site.last_round, site.last_time, site.last_fault = number, time, fault
        return sites

    def _close_round(self, time: datetime) -> None:
        if len(self._timeline) > 1:
            start, first, last = self._timeline[0], self._timeline[1], self._timeline[-1]
            for phase, begin, end in zip(PHASES, (start, first, last), (first, last, time), strict=True):
                self.phases[phase] = self.phases.get(phase, 0.0) + max(0.0, (end - begin).total_seconds())
        self.round, self.last_round_time, self._timeline = None, time, []


def _derive_state(rows: list[Row], events: list[Row], done: Row, failed: Row) -> State:
    if done:
        return "done"
    if failed:
        return "failed" if failed.get("final") else "lost"
    return "running" if rows or events else "prepared"


def _read_planned_rounds(folder: Path) -> int | None:
    """Read how many rounds the run was configured with."""
    federation = _read_object(folder / RUN).get("federation")
    if federation is None:
        try:
            federation = tomllib.loads((folder / SCENARIO).read_text()).get("federation")
        except (FileNotFoundError, ValueError):
            return None
    return _as_count(federation.get("rounds")) or None if isinstance(federation, dict) else None


def _collect_rejected_sites(rows: list[Row]) -> dict[str, SiteView]:
    """Return the sites whose updates were rejected: rows name no others, and there are no events to tell more."""
    sites: dict[str, SiteView] = {}
    for row in rows:
        faults = row.get("rejections")
        for name, fault in faults.items() if isinstance(faults, dict) else ():
            site = sites.setdefault(_clean_text(name) or "", SiteView(_clean_text(name) or ""))
            site.rejected += 1
            site.last_round, site.last_fault = _as_count(row.get("round")), _clean_text(fault)
    return sites


def _count_absences(rows: list[Row]) -> Counter[str]:
    """Count the rounds that got no update of a site because it was not connected, by name of the site."""
    absent = [row.get("absent") for row in rows]
    return Counter(_clean_text(name) or "" for names in absent if isinstance(names, list) for name in names)


def _read_lines(path: Path) -> tuple[list[Row], int]:
    """Read the objects of a file of JSON lines, and count the lines that are not JSON objects."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return [], 0
    lines = [line for line in text.split("\n")[:-1] if line]  # a last line without a newline is still being written
    objects = list(_parse_objects(lines))
    return objects, len(lines) - len(objects)


def _parse_objects(lines: list[str]) -> Iterator[Row]:
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def _read_object(path: Path) -> Row:
    """Read the JSON object in a file; empty where there is no such file yet."""
    try:
        return next(_parse_objects([path.read_text(errors="replace")]), {})
    except FileNotFoundError:
        return {}


def _sum_column(rows: list[Row], key: str) -> int:
    return sum(_as_count(row.get(key)) for row in rows)


def _as_count(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0


def _clean_text(value: object) -> str | None:
    """Return the text without characters that could control a terminal."""
    if not isinstance(value, str):
        return None
    return clean_text(value, _LONGEST_REASON)
