"""New events of a run of real sites, as lines for people."""

from collections.abc import Callable
from typing import Any

from fedglm.core.clock import WALL_CLOCK, Clock
from fedglm.core.untrusted_text import clean_text
from fedglm.run_folder.names import EVENTS, ROUNDS
from fedglm.server.deployment.run_file import read_lines
from fedglm.server.project.enrolment import read_enrolled_sites
from fedglm.server.project.folder import Project

_REFUSALS = {"refused": "refuses", "turned-away": "is turned away"}
_PATIENCE_S = 15.0  # without a round, before the user is told that the run waits


class RunNews:
    """Reports new rounds, sites that refuse, are rejected, absent or revoked, and a run that waits for sites.

    Args:
        project: Project of the run.
        name: Name of the run.
        report_line: Called with each line.
        clock: Clock for the time without events.
    """

    def __init__(
        self, project: Project, name: str, report_line: Callable[[str], None], *, clock: Clock = WALL_CLOCK
    ) -> None:
        self._project, self._folder, self._report_line, self._clock = project, project.runs / name, report_line, clock
        self._rounds, self._events = 0, len(self._read_events())
        self._quiet_since: float | None = clock.monotonic()
        self._refused: set[str] = set()
        self._absent: set[str] = set()

    def report(self) -> None:
        """Report what is new since the last call."""
        events = self._read_events()
        for event in events[self._events :]:
            kind, reason = str(event["event"]), clean_text(str(event.get("reason")))
            if kind in _REFUSALS and reason not in self._refused:
                self._refused.add(reason)
                self._report_line(f"{_name_sender(event)} {_REFUSALS[kind]}: {reason}")
            self._report_presence(kind, clean_text(str(event.get("node"))), reason)
            if kind in ("begun", "resumed"):
                self._quiet_since = None
        self._events = len(events)
        rows = read_lines(self._folder / ROUNDS)
        enrolled = len(read_enrolled_sites(self._project)) if len(rows) > self._rounds else 0  # verifies signatures
        for row in rows[self._rounds :]:
            result = f"round {row['round']}: {row['nodes_accepted']} of {row['nodes_sampled']} sites"
            self._report_line(result + _describe_others(row, enrolled) + _describe_score(row))
        self._rounds = len(rows)
        if self._quiet_since is not None and self._clock.monotonic() - self._quiet_since > _PATIENCE_S:
            self._quiet_since = None
            self._report_line("it waits for sites; fedglm server status says which are offline")

    def _report_presence(self, kind: str, site: str, reason: str) -> None:
        """Report that rounds go on without a site, or with it again."""
        if kind == "absent":
            self._absent.add(site)
            self._report_line(f"site {site} is absent: rounds go on without it until it is back")
        elif kind == "online" and site in self._absent:
            self._absent.discard(site)
            self._report_line(f"site {site} is back")
        elif kind == "revoked":
            self._report_line(f"site {site} takes no further part: {reason}")

    def _read_events(self) -> list[dict[str, object]]:
        return read_lines(self._folder / EVENTS)


def _name_sender(event: dict[str, object]) -> str:
    """Return the site that an event is about, else the node."""
    return f"site {clean_text(str(event['site']))}" if "site" in event else f"node {event.get('node')}"


def _describe_others(row: dict[str, Any], enrolled: int) -> str:
    """Describe the sites without an update that a round's row shows, and those that it did not sample."""
    words = [f"{', '.join(map(str, row[kind]))} {kind}" for kind in ("absent", "revoked") if row.get(kind)]
    more = enrolled - row["nodes_sampled"]
    words += [f"{more} more enrolled"] if more > 0 else []
    return f" ({'; '.join(words)})" if words else ""


def _describe_score(row: dict[str, Any]) -> str:
    """Describe what the server measured after a round; empty where it has no held-out records."""
    named = [name for name in ("loss", "accuracy", "perplexity") if row.get(name) is not None]
    return "".join(f", {name} {row[name]:.4g}" for name in named)
