"""`fedglm lighten`: make a model small and fast, or say how near one comes."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedglm.cli import options

if TYPE_CHECKING:
    from fedglm.autoglm.light.plan.lighten_plan import LightenPlan
    from fedglm.autoglm.light.search.sources import DenseModel
    from fedglm.autoglm.settings import DataSettings
    from fedglm.privacy.keys.signing import SigningKey

MISSED_CODE = 1
"""Exit code where no candidate meets the goals; nothing is written then."""


def lighten(
    model: Annotated[Path, typer.Argument(metavar="MODEL_OR_RUN", help="Folder of a run, or of a saved model.")],
    target: Annotated[
        list[str] | None,
        typer.Option(help="size=20x, size=80kB, latency=3x, latency=5ms, memory=256MB; several hold together."),
    ] = None,
    tolerance: Annotated[
        str, typer.Option(help="Greatest rise of the loss above an equally trained dense model's.")
    ] = "5%",
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
    declared_public: Annotated[
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
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each training; 600 without it.")] = None,
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
    """
    from fedglm.autoglm.light.plan.errors import LightenError
    from fedglm.cli.light.diagnosis import check_out, run_diagnosis
    from fedglm.cli.light.trials import open_cache

    if config is not None and (target or plan):
        raise LightenError("--config runs a plan as it is: it goes with neither --target nor --plan")
    if config is None and not target and not diagnose:
        raise LightenError("name what the model may cost, as --target size=20x")
    if cache is not None and no_cache:
        raise LightenError("--cache names a folder and --no-cache wants none: leave one out")
    if diagnose:
        check_out(out)
    whole = model.resolve()  # which has a name, where `.` has none
    folder = out or whole.with_name(f"{whole.name}-light")

    from fedglm.autoglm.light.search.sources import load_dense, load_source
    from fedglm.cli.terminal.stage_progress import StageProgress

    trials = None if no_cache or diagnose or plan is not None else open_cache(cache)
    began = time.monotonic()
    with StageProgress(quiet=as_json) as progress, _stop_on_interrupt() as stop:
        progress.show("load the model", 0.0)
        dense = load_dense(model)
        draft = _make_draft(dense, config, target or ["size=1x"], tolerance, steps, seed, text, declared_public)
        data = _describe_data(dense, text_field, label_field)
        source = load_source(dense, draft.text, data=data, seed=draft.seed)
        if diagnose:
            run_diagnosis(source, whole.name, out, progress.show, as_json=as_json)
            return
        left_out: tuple[Any, ...] = ()
        if config is None:
            from fedglm.autoglm.light.search.lightening import make_plan

            vocabulary = _vocabulary(dense) if cut_vocabulary else None
            draft, left_out = make_plan(dense, source, draft, vocabulary=vocabulary, progress=progress.show)
            draft = draft if min_cosine is None else draft.with_min_cosine(min_cosine)
        if plan is not None:
            _write_plan(draft, plan, as_json=as_json)
            return

        from fedglm.autoglm.light.search.lightening import lighten as run
        from fedglm.autoglm.light.search.record import make_record
        from fedglm.cli.light.own_text import load_own

        result = run(
            dense,
            source,
            draft,
            folder,
            signing_key=_load_key(dense, signing_key),
            left_out=left_out,
            compares=not no_comparison,
            cache=trials,
            stopped=stop.is_set,
            progress=progress.show,
        )
        progress.show("time the models of the table", 0.0)
        record = make_record(
            dense,
            result,
            seconds=time.monotonic() - began,
            origin=source.text.origin,
            own=load_own(dense, source, declared_public=draft.text.sites_data_are_public),
        )
    if record["met"]:
        _write_page(record, folder)
    _report(record, folder, as_json=as_json)
    if not record["met"]:
        raise typer.Exit(MISSED_CODE)


def _make_draft(
    dense: "DenseModel",
    config: Path | None,
    targets: list[str],
    tolerance: str,
    steps: int | None,
    seed: int | None,
    text: str | None,
    declared_public: bool,
) -> "LightenPlan":
    """Return the plan of the options, without candidates; or the one in a file."""
    from fedglm.autoglm.light.plan.goals import parse_goals
    from fedglm.autoglm.light.plan.lighten_plan import LightenPlan, TextSettings, train_for
    from fedglm.autoglm.light.plan.plan_files import read_settings_file
    from fedglm.autoglm.light.search.lightening import check_model

    if config is not None:
        plan = read_settings_file(LightenPlan, config)
        check_model(plan, dense)
        return plan
    texts = TextSettings(sites_data_are_public=declared_public)
    return LightenPlan(
        model_sha256=dense.sha256(),
        goals=parse_goals(targets, tolerance),
        text=texts if text is None else texts.model_copy(update={"source": text}),
        seed=seed or 0,
        training=train_for(steps or 600),
    )


def _describe_data(dense: "DenseModel", text_field: str | None, label_field: str | None) -> "DataSettings | None":
    """Return the settings of a file of public text; None takes those of the run."""
    from fedglm.autoglm.light.search.sources import NO_RUN
    from fedglm.autoglm.settings import DataSettings

    fields = {"text_field": text_field, "label_field": label_field}
    given = {name: value for name, value in fields.items() if value is not None}
    if not given:
        return None
    base = dense.data or DataSettings(source=NO_RUN)
    return base.model_copy(update=given)


def _vocabulary(dense: "DenseModel") -> Any:
    """Return the cut that a model's tokenizer allows: one that spells any text without a token loses nothing by it."""
    from fedglm.autoglm.data.tokenizer import is_byte_tokenizer
    from fedglm.autoglm.light.pruning.vocabulary import VocabularySettings

    tokenizer = getattr(dense.task, "tokenizer", None)
    return VocabularySettings(keep_alphabet=tokenizer is None or not is_byte_tokenizer(tokenizer))


def _load_key(dense: "DenseModel", path: Path | None) -> "SigningKey | None":
    from fedglm.privacy.keys.signing import SigningKey
    from fedglm.run_folder.names import SERVER_KEY

    own = None if dense.run is None else dense.run / SERVER_KEY
    if path is None and own is not None and own.is_file():
        path = own
    return None if path is None else SigningKey.load(path)


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


def _write_page(record: dict[str, Any], folder: Path) -> None:
    """Write the record and the page beside the release, for nothing else may lie in its folder."""
    from fedglm.core.files import write_atomically
    from fedglm.reports.light.write import write_light_page

    write_atomically(folder.with_name(f"{folder.name}.json"), json.dumps(record, indent=1) + "\n")
    write_light_page(record, folder.with_name(f"{folder.name}.html"))


def _report(record: dict[str, Any], folder: Path, *, as_json: bool) -> None:
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
