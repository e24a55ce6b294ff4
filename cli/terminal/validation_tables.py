"""Validations of light releases in the terminal, at most 80 columns wide."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedglm.core.untrusted_text import clean_text

if TYPE_CHECKING:  # else `--help` would wait for numpy
    from fedglm.inference.validation.use import Latency, Use
    from fedglm.inference.validation.validation import SignedValidation, Validation

_WORDS = {
    True: "[green]passed[/green]",
    False: "[bold red]FAILED[/bold red]",
    None: "[yellow]not checked[/yellow]",
}
_DEVICE_CHARACTERS = 9  # of a fingerprint: two of its groups
_RELEASE_CHARACTERS = 8


def print_validation(validation: "Validation") -> None:
    """Print what a device found of a release."""
    console = _make_console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("check", ""):
        table.add_column(heading, no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in validation.checks:
        table.add_row(check.name, _WORDS[check.passed], escape(check.detail))
    console.print(table)
    device = validation.device
    processor = device.processor.name or device.processor.architecture
    console.print(f"  device   {escape(processor)}, {device.threads} thread(s), ONNX Runtime {escape(device.runtime)}")
    if validation.use is not None:
        _print_use(console, validation.use)


def _print_use(console: Console, use: "Use") -> None:
    from fedglm.reports.formats import format_bytes

    for name, latency in ((f"{use.prompt_tokens} tokens read", use.prefill), ("a token written", use.decode)):
        if latency is not None:
            console.print(
                f"  latency  {name}: P50 {latency.p50_ms:.3g} ms, P99 {latency.p99_ms:.3g} ms (n = {latency.n})"
            )
    peak = "not measured" if use.peak_bytes is None else f"{format_bytes(use.peak_bytes)} at the peak"
    console.print(f"  memory   {peak}")
    console.print(f"  start    imports {use.import_ms:.0f} ms, release {use.load_ms:.0f} ms")
    watts = "not measured" if use.watts is None else f"{use.watts:.1f} W, all processor packages"
    console.print(f"  power    {watts}")


def print_fleet(read: "Sequence[tuple[Path, SignedValidation | str]]", *, verified: bool) -> None:
    """Print the validations of several devices as one table, and below it what failed.

    Args:
        read: Each file with its validation, or why it is none.
        verified: Whether the devices' keys were known.
    """
    console = _make_console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("device", "release", "checks"):
        table.add_column(heading, no_wrap=True)
    for heading in ("token\nP50 ms", "\nP99", "prompt\nP50 ms", "\nP99", "start\nms", "peak\nMB"):
        table.add_column(heading, justify="right", no_wrap=True)
    notes = list[str]()
    for path, each in read:
        if isinstance(each, str):
            table.add_row("-", "-", "[bold red]REFUSED[/bold red]", *["-"] * 6)
            notes.append(f"{path}: {each}")
            continue
        validation, name = each.validation, each.device_key.fingerprint()[:_DEVICE_CHARACTERS]
        release = (validation.manifest_sha256 or "-")[:_RELEASE_CHARACTERS]
        table.add_row(name, release, _summarize(validation), *_list_figures(validation.use))
        notes += [f"{path}: {check.name}: {check.detail}" for check in validation.checks if check.passed is False]
    console.print(table)
    for note in notes:
        console.print(f"[red]{escape(clean_text(note, 800))}[/red]")
    if not verified:
        console.print("[yellow]not verified: the files alone say whose they are; --key names the devices[/yellow]")


def _summarize(validation: "Validation") -> str:
    if not validation.passed:
        return _WORDS[False]
    return "[yellow]partly[/yellow]" if any(check.passed is None for check in validation.checks) else _WORDS[True]


def _list_figures(use: "Use | None") -> list[str]:
    if use is None:
        return ["-"] * 6
    peak = "-" if use.peak_bytes is None else f"{use.peak_bytes / 1e6:.0f}"
    return [*_list_times(use.decode), *_list_times(use.prefill), f"{use.import_ms + use.load_ms:.0f}", peak]


def _list_times(latency: "Latency | None") -> list[str]:
    return ["-", "-"] if latency is None else [f"{latency.p50_ms:.3g}", f"{latency.p99_ms:.3g}"]


def _make_console() -> Console:
    return Console(width=min(80, Console().width), emoji=False, highlight=False)
