"""`fedglm lighten`: make a model small and fast, or say how near one comes."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedglm.cli import options

if TYPE_CHECKING:
    from fedglm.autoglm.light.plan.lighten_plan import LightenPlan
    from fedglm.simulations.light.diagnosing import DiagnosisResult

MISSED_CODE = 1
"""Exit code where no candidate meets the goals; nothing is written then."""


def lighten(
    model: Annotated[Path, typer.Argument(metavar="MODEL_OR_RUN", help="Folder of a run, or of a saved model.")],
    target: Annotated[
        list[str] | None,
        typer.Option(help="size=20x, size=80kB, latency=3x, latency=5ms, memory=256MB; several hold together."),
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option(help="Greatest rise of the loss above an equally trained dense model's; 5% without it."),
    ] = None,
    device: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Times of the device that fedglm device probe measured, instead of this machine's."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the release; MODEL_OR_RUN-light without it. With --diagnose, FILE.html or FILE.png."
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the plan that would run, as .toml, .json or .yaml; train nothing."),
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Run a plan that --plan wrote.")] = None,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Say what each part of the model is worth; make nothing.")
    ] = False,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="auto|model|FILE", help="Public text to train and measure on.", rich_help_panel="Public text"
        ),
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(help="Field of FILE that holds the text.", rich_help_panel="Public text")
    ] = None,
    label_field: Annotated[
        str | None, typer.Option(help="Field of FILE that holds the class.", rich_help_panel="Public text")
    ] = None,
    sites_data_are_public: Annotated[
        bool,
        typer.Option(
            "--sites-data-are-public",
            help="FILE may hold the sites' own records: you declare them public.",
            rich_help_panel="Public text",
        ),
    ] = False,
    cut_vocabulary: Annotated[
        bool,
        typer.Option("--cut-vocabulary", help="Drop tokens that the public text lacks; they then read as unknown."),
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each training; 200 without it.")] = None,
    min_cosine: Annotated[
        float | None,
        typer.Option(min=-1, max=1, help="Repair layers whose outputs have less with the reference's; 0.9 without it."),
    ] = None,
    no_comparison: Annotated[
        bool, typer.Option("--no-comparison", help="Leave out what each means alone would give; half the time.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="What searches trained, for the next that needs the same; [cyan]~/.cache/fedglm/light[/cyan] "
            "without it.",
            rich_help_panel="Cache",
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Train all anew, to the same bits.", rich_help_panel="Cache")
    ] = False,
    seed: options.Seed = None,
    signing_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Key that signs the release; the run's own without it.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Prune, quantize and distil a model under goals, and release it; past the tolerance nothing is released.

    [bold]fedglm lighten runs/text-20270101-120000 --target size=20x --tolerance 5%[/bold]
    [bold]fedglm lighten RUN --target size=20x --plan light.toml[/bold]   what would run
    [bold]fedglm lighten RUN --config light.toml --out light[/bold]       the same bits again
    [bold]fedglm lighten RUN --target latency=2ms --device edge.json[/bold]
    """
    from fedglm.autoglm.light.plan.errors import LightenError

    if plan is not None and (config is not None or diagnose):
        raise LightenError(f"--plan writes a plan: it does not go with --{'diagnose' if diagnose else 'config'}")
    if diagnose and (target or config):
        raise LightenError(f"--diagnose makes nothing: it does not go with --{'config' if config else 'target'}")

    from fedglm.cli.terminal.stage_progress import StageProgress
    from fedglm.simulations.light import lighten as light  # imports torch
    from fedglm.simulations.light.diagnosing import diagnose as diagnose_model

    of_text: dict[str, Any] = {
        "text": text,
        "text_field": text_field,
        "label_field": label_field,
        "sites_data_are_public": sites_data_are_public,
        "seed": seed,
    }
    of_search: dict[str, Any] = of_text | {
        "device": device,
        "cut_vocabulary": cut_vocabulary,
        "steps": steps,
        "min_cosine": min_cosine,
    }
    with StageProgress(quiet=as_json) as progress, _stop_on_interrupt() as stop:
        if diagnose:
            _print_diagnosis(diagnose_model(model, out=out, progress=progress.show, **of_text), out, as_json=as_json)
            return
        if plan is not None:
            from fedglm.autoglm.light.outputs import check_plan_path

            check_plan_path(plan, read=[each for each in (device, text and Path(text)) if each])
            made = light.plan_lightening(model, target or (), tolerance, progress=progress.show, **of_search)
            _write_plan(made, plan, as_json=as_json)
            return
        result = light.lighten(
            model,
            target or (),
            tolerance,
            config=config,
            out=out,
            signing_key=signing_key,
            no_comparison=no_comparison,
            cache=cache,
            no_cache=no_cache,
            stopped=stop.is_set,
            progress=progress.show,
            warn=lambda line: typer.echo(line, err=True),
            **of_search,
        )
    _report(result.record, result.folder, as_json=as_json)
    if result.folder is None:
        raise typer.Exit(MISSED_CODE)


def _print_diagnosis(found: "DiagnosisResult", out: Path | None, *, as_json: bool) -> None:
    typer.echo(json.dumps(found.record, indent=1) if as_json else found.text, nl=as_json)
    if out is not None and not as_json:
        typer.echo(f"written: {out}")


def _write_plan(plan: "LightenPlan", path: Path, *, as_json: bool) -> None:
    from fedglm.autoglm.light.plan.plan_files import to_text, write_settings

    write_settings(plan, path)
    if as_json:
        typer.echo(plan.model_dump_json(exclude_none=True, indent=1))
    else:
        typer.echo(to_text(plan), nl=False)
    if not plan.candidates:
        typer.echo(f"no candidate reaches {plan.goals.describe()}", err=True)
        raise typer.Exit(MISSED_CODE)


def _report(record: dict[str, Any], folder: Path | None, *, as_json: bool) -> None:
    from fedglm.cli.terminal.light_tables import print_light

    if as_json:
        typer.echo(json.dumps(record, indent=1))
    else:
        print_light(record, folder)


class _Stop:
    """Whether the user asked to stop."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        self._asked = True

    def is_set(self) -> bool:
        return self._asked


@contextmanager
def _stop_on_interrupt() -> Iterator[_Stop]:
    """Take the first Ctrl-C as a wish to keep the best so far, and the second as an end."""
    stop, before = _Stop(), signal.getsignal(signal.SIGINT)

    def handle(_signal: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.ask()
        typer.echo("stopping with the best so far; Ctrl-C again ends at once", err=True)

    signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
