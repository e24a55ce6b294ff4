"""A run as its folder tells it while it goes on: how far it is, what crossed the wire, how each site does.

For those who watch, people and machines. It reads what `run_log.RunLog` and a simulation write, needs neither torch nor
Flower, and takes a folder as it is: a file that is not there yet says nothing, and a line that a killed process left
half-written is counted, not read. What a node or a site wrote is cut to printable characters here.
"""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from fedglm.core.untrusted_text import cleaned
from fedglm.run_folder.names import DONE, EVENTS, FAILED, ROUNDS, RUN, SCENARIO, SUMMARY

PHASES = ("first-answer", "other-answers", "closing")
"""Parts of a round: until the first answer was in, until the last one was, until the round was on disk."""

_LONGEST_REASON = 500

Row = dict[str, Any]
State = Literal["prepared", "running", "done", "lost", "failed"]


@dataclass
class SiteView:
    """One site in a run.

    Attributes:
        name: The site's.
        answers: Rounds in which its update was folded in.
        rejected: Rounds in which it was not.
        last_round: The latest round of either; None for none.
        last_time: When that was; None where the folder holds no events.
        last_fault: Why its latest update was rejected; None where the latest was folded in.
    """

    name: str
    answers: int = 0
    rejected: int = 0
    last_round: int | None = None
    last_time: datetime | None = None
    last_fault: str | None = None


@dataclass(frozen=True)
class Notice:
    """A node that takes no part.

    Attributes:
        time: When it was told so.
        node: Flower's number of it.
        reason: Why.
    """

    time: datetime
    node: str
    reason: str


@dataclass(frozen=True)
class Bytes:
    """Bytes as they lie in the messages, and those of dense float32 for the same nodes."""

    uplink: int = 0
    downlink: int = 0
    dense_uplink: int = 0
    dense_downlink: int = 0

    @property
    def ratio(self) -> float | None:
        """Coded bytes over dense bytes, both ways; None before the first round."""
        dense = self.dense_uplink + self.dense_downlink
        return (self.uplink + self.downlink) / dense if dense else None


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run at a moment.

    Attributes:
        name: Of the folder.
        state: `lost` where the server's process ended by an error that another try may not meet.
        rounds: How many there will be; None where the folder does not say.
        rows: Lines of `rounds.jsonl`, one a finished round.
        metric: `accuracy`, `perplexity` or None.
        traffic: Over all finished rounds.
        accepted: Updates that were folded in, in finished rounds.
        rejected: Updates that were not.
        round: The one that is under way; None between rounds and where there are no events.
        sampled: How many nodes were drawn for it.
        replies: How many of them have answered.
        sites: By name.
        refused: Nodes whose own policy refuses the plan; the latest of each.
        rejected_nodes: Nodes that may not take part; the latest of each.
        phases: Seconds of all finished rounds by `PHASES`; empty where there are no events.
        began: When the run began, or went on; None where there are no events.
        last_round_time: When the latest round was on disk.
        last_event: When anything happened last.
        model_sha256: The result; None before the end.
        failure: Why it is `lost` or `failed`.
        unreadable: Lines that could not be read.
    """

    name: str
    state: State
    rounds: int | None
    rows: list[Row]
    metric: str | None
    traffic: Bytes
    accepted: int
    rejected: int
    round: int | None
    sampled: int
    replies: int
    sites: dict[str, SiteView]
    refused: dict[str, Notice]
    rejected_nodes: dict[str, Notice]
    phases: dict[str, float]
    began: datetime | None
    last_round_time: datetime | None
    last_event: datetime | None
    model_sha256: str | None
    failure: str | None
    unreadable: int


def is_run(folder: Path) -> bool:
    """Whether the folder holds a run, or will."""
    return any((folder / name).is_file() for name in (ROUNDS, EVENTS, RUN, SCENARIO))


def read_view(folder: Path) -> RunView:
    """Look at a run's folder.

    Raises:
        OSError: A file of it cannot be read.
    """
    (rows, cut), (events, more_cut) = _lines(folder / ROUNDS), _lines(folder / EVENTS)
    told = _Events()
    for event in events:
        told.take(event)
    done, failed = _object(folder / DONE), _object(folder / FAILED)
    summary = _object(folder / SUMMARY) if not events else {}
    return RunView(
        name=folder.absolute().name,
        state=_state(rows, events, done or summary, failed),
        rounds=_rounds(folder),
        rows=rows,
        metric=next((name for name in ("accuracy", "perplexity") if rows and name in rows[-1]), None),
        traffic=Bytes(
            *(_sum(rows, f"{way}_bytes") for way in ("uplink", "downlink", "dense_uplink", "dense_downlink"))
        ),
        accepted=_sum(rows, "nodes_accepted"),
        rejected=_sum(rows, "nodes_rejected"),
        round=None if done or failed else told.round,
        sampled=told.sampled,
        replies=len(told.replied),
        sites=told.sites() if events else _sites_of(rows),
        refused=told.refused,
        rejected_nodes=told.rejected_nodes,
        phases=told.phases,
        began=told.began,
        last_round_time=told.last_round_time,
        last_event=told.last_event,
        model_sha256=_text((done or summary).get("model_sha256")),
        failure=_text(failed.get("reason")),
        unreadable=cut + more_cut,
    )


@dataclass
class _Events:
    """What the events add up to; those of a round that was begun again count once."""

    round: int | None = None
    sampled: int = 0
    replied: set[str] = field(default_factory=set)
    refused: dict[str, Notice] = field(default_factory=dict)
    rejected_nodes: dict[str, Notice] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    began: datetime | None = None
    last_round_time: datetime | None = None
    last_event: datetime | None = None
    _replies: dict[tuple[str, int], tuple[datetime, str | None]] = field(default_factory=dict)
    _moments: list[datetime] = field(default_factory=list)

    def take(self, event: Row) -> None:
        """One line."""
        try:
            time, kind = datetime.fromisoformat(event["time"]), event["event"]
        except (KeyError, TypeError, ValueError):
            return
        self.last_event = time
        self.began = self.began or time
        number, node = _whole(event.get("round")), _text(event.get("node")) or ""
        if kind in ("begun", "resumed"):
            self.began, self.round = time, None
        elif kind == "round":
            self.round, self.sampled, self.replied, self._moments = number, _whole(event.get("sampled")), set(), [time]
        elif kind in ("reply", "rejected"):
            fault = (_text(event.get("reason")) or "no reason was given") if kind == "rejected" else None
            self._replies[node, number] = time, fault
            self.replied.add(node)
            self._moments.append(time)
        elif kind == "done":
            self._close(time)
        elif kind in ("refused", "turned-away"):
            book = self.refused if kind == "refused" else self.rejected_nodes
            book[node] = Notice(time, node, _text(event.get("reason")) or "")

    def sites(self) -> dict[str, SiteView]:
        """Each that ever answered."""
        found: dict[str, SiteView] = {}
        for (name, number), (time, fault) in sorted(self._replies.items()):
            site = found.setdefault(name, SiteView(name))
            site.answers += fault is None
            site.rejected += fault is not None
            site.last_round, site.last_time, site.last_fault = number, time, fault
        return found

    def _close(self, time: datetime) -> None:
        if len(self._moments) > 1:
            start, first, last = self._moments[0], self._moments[1], self._moments[-1]
            for phase, begin, end in zip(PHASES, (start, first, last), (first, last, time), strict=True):
                self.phases[phase] = self.phases.get(phase, 0.0) + max(0.0, (end - begin).total_seconds())
        self.round, self.last_round_time, self._moments = None, time, []


def _state(rows: list[Row], events: list[Row], done: Row, failed: Row) -> State:
    if done:
        return "done"
    if failed:
        return "failed" if failed.get("final") else "lost"
    return "running" if rows or events else "prepared"


def _rounds(folder: Path) -> int | None:
    """How many the run was given."""
    federation = _object(folder / RUN).get("federation")
    if federation is None:
        try:
            federation = tomllib.loads((folder / SCENARIO).read_text()).get("federation")
        except (FileNotFoundError, ValueError):
            return None
    return _whole(federation.get("rounds")) or None if isinstance(federation, dict) else None


def _sites_of(rows: list[Row]) -> dict[str, SiteView]:
    """Sites that were ever rejected: all that is known of one where there are no events."""
    found: dict[str, SiteView] = {}
    for row in rows:
        faults = row.get("rejections")
        for name, fault in faults.items() if isinstance(faults, dict) else ():
            site = found.setdefault(_text(name) or "", SiteView(_text(name) or ""))
            site.rejected += 1
            site.last_round, site.last_fault = _whole(row.get("round")), _text(fault)
    return found


def _lines(path: Path) -> tuple[list[Row], int]:
    """The objects of a file of JSON lines, and how many lines are none."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return [], 0
    lines = [line for line in text.split("\n")[:-1] if line]  # a last line without its end is being written
    found = list(_objects(lines))
    return found, len(lines) - len(found)


def _objects(lines: list[str]) -> Iterator[Row]:
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def _object(path: Path) -> Row:
    """The object in a file; empty where there is none yet."""
    try:
        return next(_objects([path.read_text(errors="replace")]), {})
    except FileNotFoundError:
        return {}


def _sum(rows: list[Row], key: str) -> int:
    return sum(_whole(row.get(key)) for row in rows)


def _whole(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0


def _text(value: object) -> str | None:
    """The text without what could steer a terminal."""
    if not isinstance(value, str):
        return None
    return cleaned(value, _LONGEST_REASON)
