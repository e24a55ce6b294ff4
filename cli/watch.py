"""`fedglm watch`: a run in progress, shown in the terminal from the files in its folder."""

import contextlib
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedglm.cli import options

if TYPE_CHECKING:  # else `--help` would wait for rich's tables
    from collections.abc import Sequence

    from rich.console import Console, Group
    from rich.table import Table

    from fedglm.run_folder.progress import NonParticipant, RunView

_POLL_S = 1.0
_MAX_NON_PARTICIPANTS = 8  # rows in the table, the latest
_MAX_NAMES = 8  # in a line

_COLOURS = {"prepared": "default", "running": "green", "done": "green", "lost": "yellow", "failed": "red"}


def watch(
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="Of fedglm run, or of fedglm simulate.")],
    once: Annotated[bool, typer.Option("--once", help="Show how it stands, and end.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show a run while it goes on: rounds, bytes, whom it waits for, who is absent, and how each site does.

    [bold]fedglm watch fl/runs/hospital-20270104-101500[/bold]

    It only reads. Ctrl-C ends the watching, and not the run.
    """
    from fedglm.run_folder.progress import is_run, read_view
    from fedglm.server.errors import ProjectError

    if not is_run(folder):
        raise ProjectError(f"{folder} holds no run: name a folder in runs/, of a project or of fedglm simulate")
    if as_json:
        typer.echo(json.dumps(describe_run(read_view(folder)), indent=1, allow_nan=False))
        return
    from rich.live import Live

    from fedglm.cli.terminal.tables import wide_console

    console = wide_console()
    view = read_view(folder)
    if once:
        console.print(render_run(view, time.time()))
        return
    with contextlib.suppress(KeyboardInterrupt):
        if not console.is_terminal:
            _print_changes(folder, console)
            return
        with Live(render_run(view, time.time()), console=console, auto_refresh=False) as live:
            while view.state not in ("done", "failed"):
                time.sleep(_POLL_S)
                view = read_view(folder)
                live.update(render_run(view, time.time()), refresh=True)


def _print_changes(folder: Path, console: "Console") -> None:
    """Print the run whenever its round or state changes, until it ends; for a file or a pipe."""
    from fedglm.run_folder.progress import read_view

    printed = None
    while printed is None or printed[0] not in ("done", "failed"):
        view = read_view(folder)
        if (now := (view.state, len(view.rows))) != printed:
            console.print(render_run(view, time.time()))
            printed = now
        time.sleep(_POLL_S)


def describe_run(view: "RunView") -> dict[str, Any]:
    """Return all that is shown, as values that JSON can represent."""
    last = {key: _finite_or_none(value) for key, value in view.rows[-1].items()} if view.rows else {}
    return {
        "run": view.name,
        "state": view.state,
        "rounds": view.rounds,
        "rounds_done": len(view.rows),
        "round": view.round,
        "sampled": view.sampled,
        "replies": view.replies,
        "loss": last.get("loss"),
        "metric": view.metric,
        "metric_value": last.get(view.metric) if view.metric else None,
        "epsilon": last.get("epsilon"),
        "client_epsilon": last.get("client_epsilon"),
        "last_round_s": last.get("wall_s"),
        "phases_s": view.phases,
        "uplink_bytes": view.traffic.uplink,
        "downlink_bytes": view.traffic.downlink,
        "dense_uplink_bytes": view.traffic.dense_uplink,
        "dense_downlink_bytes": view.traffic.dense_downlink,
        "ratio": view.traffic.ratio,
        "accepted": view.accepted,
        "rejected": view.rejected,
        "awaited": list(view.awaited),
        "absences": view.absences,
        "offline": [
            {"name": site.name, "since": site.since.isoformat(), "absent": site.is_absent}
            for site in view.offline.values()
        ],
        "revoked": [
            {"name": site.name, "time": site.time.isoformat(), "reason": site.reason}
            for site in view.revoked_sites.values()
        ],
        "sites": [
            {
                "name": site.name,
                "answers": site.answers,
                "rejected": site.rejected,
                "absent": site.absent,
                "last_round": site.last_round,
                "last_answer": site.last_time.isoformat() if site.last_time else None,
                "last_fault": site.last_fault,
            }
            for site in view.sites.values()
        ],
        "refused": [_describe_non_participant(entry) for entry in view.refused.values()],
        "turned_away": [_describe_non_participant(entry) for entry in view.rejected_nodes.values()],
        "model_sha256": view.model_sha256,
        "failure": view.failure,
        "unreadable_lines": view.unreadable,
    }


def _describe_non_participant(entry: "NonParticipant") -> dict[str, Any]:
    return {"node": entry.node, "site": entry.site, "reason": entry.reason}


def render_run(view: "RunView", now: float) -> "Group":
    """Render a run for the terminal.

    Args:
        view: Snapshot of the run.
        now: Current time in seconds since the epoch.
    """
    from rich.console import Group
    from rich.markup import escape

    parts: list[Any] = [_render_head(view, now), *_describe_presence(view, now)]
    parts += [_render_traffic(view), _describe_last_round(view), ""]
    if view.sites:
        parts.append(_render_sites(view, now))
    if view.refused or view.rejected_nodes:
        parts.append(_render_non_participants(view, now))
    if view.failure:
        remedy = "fedglm run --resume goes on" if view.state == "lost" else "it cannot go on as it is"
        parts.append(f"[red]{escape(view.failure)}[/red]\n{remedy}")
    if view.model_sha256:
        parts.append(f"model {escape(view.model_sha256[:16])}")
    if view.unreadable:
        parts.append(f"[yellow]note: {view.unreadable} lines of its files cannot be read[/yellow]")
    return Group(*parts)


def _render_head(view: "RunView", now: float) -> "Table":
    from rich.markup import escape
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    done = len(view.rows)
    status = f"[bold]{escape(view.name)}[/bold] [{_COLOURS[view.state]}]{view.state}[/]"
    if view.round is not None:
        status += f", round {view.round}: {view.replies} of {view.sampled} have answered"
    elif view.state == "running" and view.last_event is not None:
        status += f", last sign {_format_age(view.last_event.timestamp(), now)}"
    table = Table.grid(padding=(0, 1))
    table.add_row(status)
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        f"{done} of {view.rounds} rounds" if view.rounds else f"{done} rounds",
        ProgressBar(total=view.rounds or max(done, 1), completed=done, width=40),
    )
    table.add_row(bar)
    return table


def _describe_presence(view: "RunView", now: float) -> list[str]:
    """Describe whom the round in progress waits for, who is offline since when, and who was revoked."""
    from rich.markup import escape

    lines = []
    if view.awaited:
        lines.append(f"waits for {escape(_list_names(view.awaited))}")
    for is_absent, meaning in ((True, "absent, rounds go on without"), (False, "offline")):
        sites = [site for site in view.offline.values() if site.is_absent is is_absent]
        if sites and view.state == "running":
            words = [f"{site.name} (since {_format_age(site.since.timestamp(), now)})" for site in sites]
            lines.append(f"[yellow]{meaning}: {escape(_list_names(words))}[/yellow]")
    if view.revoked_sites:
        words = [f"{site.name} ({_format_age(site.time.timestamp(), now)})" for site in view.revoked_sites.values()]
        lines.append(f"[yellow]revoked: {escape(_list_names(words))}[/yellow]")
    return lines


def _list_names(names: "Sequence[str]") -> str:
    hidden = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {hidden} more" if hidden > 0 else "")


def _render_traffic(view: "RunView") -> "Table":
    from rich import box
    from rich.table import Table

    from fedglm.reports.formats import format_bytes, format_percent

    traffic = view.traffic
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "coded", "dense float32", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, coded, dense in (
        ("uplink", traffic.uplink, traffic.dense_uplink),
        ("downlink", traffic.downlink, traffic.dense_downlink),
        ("both ways", traffic.uplink + traffic.downlink, traffic.dense_uplink + traffic.dense_downlink),
    ):
        table.add_row(name, format_bytes(coded), format_bytes(dense), format_percent(coded / dense if dense else None))
    return table


def _describe_last_round(view: "RunView") -> str:
    """Describe the results of the last round, and the updates accepted and rejected so far."""
    from fedglm.cli.terminal.tables import finite, metric_form

    last, words = (view.rows[-1] if view.rows else {}), []
    if last.get("loss") is not None:
        words.append(f"loss {finite(last['loss'], '.4f')}")
        if view.metric and last.get(view.metric) is not None:
            words.append(f"{view.metric} {finite(last[view.metric], metric_form(view.metric))}")
    if last.get("wall_s") is not None:
        words.append(f"last round {finite(last['wall_s'], '.1f')} s")
    for key, name in (("epsilon", "epsilon"), ("client_epsilon", "epsilon of whole nodes")):
        if last.get(key) is not None:
            words.append(f"{name} {finite(last[key], '.2f')}")
    absences = f", {view.absences} missing because sites were absent" if view.absences else ""
    words.append(f"{view.accepted} updates folded in, {view.rejected} rejected{absences}")
    return ", ".join(words)


def _render_sites(view: "RunView", now: float) -> "Table":
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    for heading in ("site", "last answer"):
        table.add_column(heading, no_wrap=True, max_width=24)
    for heading in ("round", "folded in", "rejected", *(["absent"] if view.absences else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("why the last one was rejected", ratio=1, no_wrap=True, overflow="ellipsis")
    for site in sorted(view.sites.values(), key=lambda site: (site.last_round or 0, site.name)):
        behind = view.round is not None and (site.last_round or 0) < view.round
        table.add_row(
            escape(site.name),
            _format_age(site.last_time.timestamp(), now) if site.last_time else "-",
            str(site.last_round or "-"),
            str(site.answers) if view.last_event else "-",
            f"[red]{site.rejected}[/red]" if site.rejected else "0",
            *([str(site.absent)] if view.absences else []),
            escape(site.last_fault or ""),
            style="yellow" if behind else "",
        )
    return table


def _render_non_participants(view: "RunView", now: float) -> "Table":
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    nodes = [("refuses the plan", entry) for entry in view.refused.values()]
    nodes += [("turned away", entry) for entry in view.rejected_nodes.values()]
    nodes.sort(key=lambda pair: pair[1].time)
    hidden = len(nodes) - _MAX_NON_PARTICIPANTS
    title = f"nodes that take no part, {len(nodes)} in all" + (", the latest" if hidden > 0 else "")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True, title=title, title_justify="left")
    for heading in ("node", "", "when"):
        table.add_column(heading, no_wrap=True, max_width=24)
    table.add_column("why", ratio=1, overflow="fold")
    for how, entry in nodes[-_MAX_NON_PARTICIPANTS:]:
        table.add_row(escape(entry.name), how, _format_age(entry.time.timestamp(), now), escape(entry.reason))
    return table


def _format_age(moment: float, now: float) -> str:
    seconds = now - moment
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"


def _finite_or_none(value: Any) -> Any:
    """Return None for a NaN or infinity, which JSON cannot represent: the run diverged."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
