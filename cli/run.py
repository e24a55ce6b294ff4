"""`fedglm run`: a federation of real sites, on the project's SuperLink."""

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedglm.cli import options
from fedglm.cli.errors import INTERRUPTED

if TYPE_CHECKING:  # else `--help` would wait for torch
    from fedglm.scenarios.scenario import Scenario
    from fedglm.server.project.folder import Project

_POLL_S = 1.0
_MAX_FAILED_SUBMISSIONS = 3  # in succession, before the failure counts


def run(
    scenario: Annotated[
        str | None,
        typer.Argument(metavar="[SCENARIO]", help="A built-in name (hospital without it), or a TOML file."),
    ] = None,
    project: Annotated[Path, typer.Option("-C", "--project", help="The project's folder.")] = Path(),
    name: Annotated[str | None, typer.Option(help="Of the run; SCENARIO-TIME without it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run of that --name.")] = False,
    rounds: options.Rounds = None,
    codec: Annotated[str | None, typer.Option(help="How updates are coded: topk-sign, topk-fp16, int8, ...")] = None,
    density: options.Density = None,
    epsilon: options.Epsilon = None,
    no_dp: options.NoDp = False,
    seed: options.Seed = None,
    start_from: Annotated[
        str | None, typer.Option(metavar="RUN", help="Train on from the model of a finished run: its name, or folder.")
    ] = None,
    terms: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the terms for the sites' policies, and run nothing.")
    ] = None,
    tries: Annotated[int, typer.Option(min=1, help="How often the run is handed over again when it is lost.")] = 20,
    patience: Annotated[float, typer.Option(min=1, help="Seconds to wait for a SuperLink that is away.")] = 600.0,
    settings: options.Settings = None,
    as_json: options.Json = False,
) -> None:
    """Run a federation of the enrolled sites, and wait for it; Ctrl-C leaves it running.

    [bold]fedglm run hospital -C fed --no-dp[/bold]                    the scenario, by the sites of the project fed
    [bold]fedglm run hospital -C fed --name NAME --resume[/bold]       go on, or watch again, after whatever happened
    [bold]fedglm run hospital -C fed --no-dp --start-from NAME[/bold]      train on from the model of a finished run
    [bold]fedglm run hospital -C fed --terms hospital.plan[/bold]      what sites look at with fedglm client plan
    """
    from fedglm.cli.terminal.tables import print_report, wide_console
    from fedglm.run_folder.names import SCENARIO
    from fedglm.scenarios.deployment import is_prepared
    from fedglm.scenarios.overrides import load_scenario, option_changes
    from fedglm.server.deployment.run_file import check_run_name
    from fedglm.server.project.folder import Project

    opened = Project.open(project)
    if resume and name is None:
        raise typer.BadParameter("--resume needs --name, the run to go on with")
    if resume and start_from is not None:
        raise typer.BadParameter("--start-from is for a new run: one that is resumed goes on from where it was")
    if terms is not None and start_from is not None:
        raise typer.BadParameter("--start-from is no part of the terms: leave it out with --terms")
    base = None if start_from is None else _find_base(opened, start_from)
    given, changes = options.collect_options(locals()), options.parse_settings(settings)
    nodes = {"federation.nodes": None}  # those that are enrolled
    chosen = load_scenario(scenario or "hospital", settings=nodes | changes, **given)
    if terms is not None:
        _write_terms(opened, chosen, terms)
        return
    called = check_run_name(name or f"{chosen.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder = opened.runs / called
    if is_prepared(folder):
        if not resume:
            raise typer.BadParameter(f"{folder} already holds a run: add --resume to go on, or give another --name")
        asked = [key for key, value in option_changes(given).items() if value is not None]
        asked += changes
        chosen = _read_begun_scenario(folder / SCENARIO, chosen, [*asked, *(["name"] if scenario else [])])
    elif resume:
        raise typer.BadParameter(f"{opened.runs} holds no run {called}")
    console = wide_console()
    summary = _execute_run(opened, called, chosen, base=base, tries=tries, patience=patience, quiet=as_json)
    if as_json:
        from fedglm.run_folder.rows import to_json

        typer.echo(to_json(summary, indent=1))
        return
    console.print(f"{called}: {summary['rounds']} rounds, model {summary['model_sha256'][:16]}", highlight=False)
    if "loss" in summary:
        console.print(_describe_results(summary), highlight=False)
    ways = [
        f"{summary[f'{way}link_bytes'] / 1e3:.1f} kB {way}, {summary[f'{way}link_ratio']:.2%} of dense float32"
        for way in ("up", "down")
    ]
    console.print(f"traffic: {'; '.join(ways)}", highlight=False)
    if summary["superlink_uplink_bytes"] is not None:
        totals = [f"{summary[f'superlink_{way}link_bytes'] / 1e3:.1f} kB {way}" for way in ("up", "down")]
        console.print(f"with the messages around it, by the SuperLink's count: {', '.join(totals)}", highlight=False)
    if summary["light"] is not None:
        from fedglm.cli.terminal.tables import describe_light

        console.print(describe_light(summary["light"]), markup=False, highlight=False)
    console.print(f"model: {folder / 'model'}", markup=False, highlight=False, soft_wrap=True)
    print_report(console, folder)


def _describe_results(summary: dict[str, Any]) -> str:
    """Describe what the server measured on its own held-out records."""
    from fedglm.cli.terminal.tables import finite, metric_form

    metric, initial, best = summary["metric"], summary["initial"], summary["best_round"]
    form = metric_form(metric)

    def name(score: dict[str, Any]) -> str:
        return f"loss {finite(score['loss'], '.4f')}, {metric} {finite(score[metric], form)}"

    parts = [f"{name(summary)} on {summary['evaluated']} held-out records of the server's", f"before: {name(initial)}"]
    if best is not None and best["round"] != summary["rounds"]:
        parts.append(f"best round {best['round']}: {name(best)}")
    return "; ".join(parts)


def _find_base(project: "Project", run: str) -> Path:
    """Return the folder of the run to start from: one of the project by its name, or any by its path."""
    named = project.runs / run
    return named if "/" not in run and named.is_dir() else Path(run).expanduser()


def _write_terms(project: "Project", scenario: "Scenario", path: Path) -> None:
    from fedglm.scenarios.deployment import build_deployed_model, sign_terms

    signed = sign_terms(build_deployed_model(scenario), project.signing_key)
    with path.open("w") as file:
        file.write(signed.to_text() + "\n")
    typer.echo(f"{path}: hand it over to the sites, whose fedglm client plan {path.name} shows what it means")
    typer.echo(f"SHA-256 of the terms: {signed.plan.terms_sha256}")


def _read_begun_scenario(path: Path, chosen: "Scenario", asked: list[str]) -> "Scenario":
    """Read the scenario that a run was started with, and refuse options that contradict it."""
    from fedglm.scenarios.scenario import Scenario

    begun = Scenario.from_toml(path.read_text(), origin=str(path))
    before, now = begun.model_dump(), chosen.model_dump()
    for dotted in asked:
        was, wanted = _get_setting(before, dotted), _get_setting(now, dotted)
        if was != wanted:
            raise typer.BadParameter(
                f"the run was begun with {dotted} = {was!r}, and goes on with it: leave {wanted!r} out, or begin "
                "another run under a --name of its own"
            )
    return begun


def _get_setting(tree: dict[str, Any], dotted: str) -> Any:
    for key in dotted.split("."):
        tree = tree[key]
    return tree


def _execute_run(
    project: "Project",
    name: str,
    scenario: "Scenario",
    *,
    base: Path | None,
    tries: int,
    patience: float,
    quiet: bool,
) -> dict[str, Any]:
    """Prepare the run, from the model in the folder `base` where that is given; wait, write model, summary and page."""
    from fedglm.core.files import write_atomically
    from fedglm.reports.run.write import write_report
    from fedglm.run_folder.names import MODEL, SUMMARY
    from fedglm.run_folder.rows import to_json
    from fedglm.scenarios.deployed_summary import summarize_deployed_run
    from fedglm.scenarios.deployment import build_deployed_model, is_prepared, prepare, save_final_model
    from fedglm.scenarios.start_from import start_from
    from fedglm.server.errors import ProjectError
    from fedglm.server.project.enrolment import read_enrolled_sites

    sites, folder = len(read_enrolled_sites(project)), project.runs / name
    if not sites:
        raise ProjectError("no site is enrolled: fedglm server enrol SITE.pub takes what a site hands over")
    built = build_deployed_model(scenario)
    if base is not None:
        built = start_from(built, base)
    _refuse_second_run(project, name)
    if not is_prepared(folder):
        prepare(built, folder, sites)
    try:
        superlink_bytes = _wait_for_run(project, name, tries=tries, patience=patience, quiet=quiet)
    except KeyboardInterrupt:
        typer.echo(
            f"the run goes on; fedglm watch {folder} shows it, --name {name} --resume waits for it again, and "
            f"fedglm server cancel {name} -C {project.folder} ends it",
            err=True,
        )
        sys.exit(INTERRUPTED)
    save_final_model(built, folder, folder / MODEL)
    summary = summarize_deployed_run(built, folder, sites, superlink_bytes)
    write_atomically(folder / SUMMARY, to_json(summary, indent=1) + "\n")
    write_report(folder)
    return summary


def _refuse_second_run(project: "Project", name: str) -> None:
    """Refuse to start a run while another is under way, since a site follows one plan at a time."""
    from fedglm.server.deployment.submission import list_runs_under_way
    from fedglm.server.errors import ProjectError
    from fedglm.server.superlink.control import Control

    with Control(project) as control:
        try:
            others = [run for run in list_runs_under_way(project, control) if run != name]
        except ProjectError:  # the SuperLink is away; the caller waits for it
            return
    if others:
        raise ProjectError(
            f"the run {others[0]} is under way, and sites keep to one plan at a time: wait for it (fedglm watch "
            f"{project.runs / others[0]}), or end it (fedglm server cancel {others[0]} -C {project.folder})"
        )


def _wait_for_run(project: "Project", name: str, *, tries: int, patience: float, quiet: bool) -> tuple[int, int] | None:
    """Wait until the run is done; submit it, and again whenever it is lost.

    Args:
        project: Project of the run.
        name: Name of the run.
        tries: Maximum number of submissions.
        patience: Seconds to wait for a SuperLink that does not answer.
        quiet: Print no progress.

    Returns:
        The SuperLink's own count of bytes, uplink and downlink; None where it no longer answers.

    Raises:
        ProjectError: The run was lost `tries` times, or the SuperLink did not answer for `patience` seconds.
    """
    from fedglm.cli.process.flower_environment import make_flower_environment
    from fedglm.server.deployment.run_news import RunNews
    from fedglm.server.deployment.serving import is_served
    from fedglm.server.deployment.submission import count_traffic, has_ended, is_under_way, stop_run, submit
    from fedglm.server.errors import ProjectError, UnreachableError
    from fedglm.server.superlink.control import Control

    folder, served, news = project.runs / name, False, RunNews(project, name, partial(_print_progress, quiet=quiet))
    submitted, failed, last_seen = 0, 0, time.monotonic()
    with Control(project) as control:
        while not has_ended(folder, is_submitted=submitted > 0):
            try:
                was, served = served, is_served(folder)
                if was and not served and not has_ended(folder, is_submitted=True):
                    stop_run(project, control, name)  # its process is dead, which Flower notices only after a minute
                if (
                    not served
                    and not is_under_way(project, control, name)
                    and not has_ended(folder, is_submitted=submitted > 0)
                ):
                    if submitted == tries:
                        raise ProjectError(f"the run was lost {tries} times: see {folder} and fedglm server status")
                    failed += 1
                    submit(project, name, make_flower_environment(project.flower_home))
                    submitted, failed = submitted + 1, 0
                    _print_progress(f"handed to the SuperLink{' again' if submitted > 1 else ''}", quiet)
                last_seen = time.monotonic()
            except UnreachableError as exc:
                if time.monotonic() - last_seen > patience:
                    remedy = f"fedglm server start -C {project.folder}, then run again with --name {name} --resume"
                    raise ProjectError(f"the SuperLink has been away for {patience:g} s: {remedy}") from exc
            except ProjectError:
                # Flower's command cannot distinguish a refusal from a SuperLink that dies during the call.
                if not 0 < failed < _MAX_FAILED_SUBMISSIONS and control.is_up():
                    raise
            news.report()
            time.sleep(_POLL_S)
        news.report()
        try:
            return count_traffic(project, control, name)
        except UnreachableError:
            return None


def _print_progress(line: str, quiet: bool) -> None:
    if not quiet:
        typer.echo(line, err=True)
