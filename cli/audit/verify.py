"""`fedglm audit verify`: whether records can be trusted, and why."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedglm.cli import options
from fedglm.cli.keys import parse_key

if TYPE_CHECKING:  # else `--help` would wait for the accountants
    from fedglm.audit.verify.verification import Verification

WRONG_CODE = 1
"""Exit code if a record was changed, or contradicts another."""
OPEN_CODE = 3
"""Exit code if nothing is wrong, and something is missing that complete records have."""


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, a site's, a bundle, or a proof.")],
    server: Annotated[
        list[Path] | None,
        typer.Option(
            help="The run's folder at the server, a bundle of it, or its log, to hold a site's records to; again for "
            "each run."
        ),
    ] = None,
    site: Annotated[
        list[Path] | None, typer.Option(help="A site's folder or bundle, not in DIR; again for each.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            help="A key that is known from elsewhere, 64 digits or a SITE.pub; it must sign a log here, or the bundle."
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every check, also those that hold.")] = False,
    as_json: options.Json = False,
) -> None:
    """Verify all records: chains, signatures, countersignatures, ledgers, bytes, epsilon.

    [bold]fedglm audit verify runs/hospital-20270101-120000[/bold]

    DIR is the folder of a run, of a node or of a site, a bundle that
    fedglm audit export wrote of one, or a proof of fedglm audit prove. A site
    holds its own records to the server's:
    [bold]fedglm audit verify SITE --server hospital-auditor.zip[/bold]

    It needs no network, no torch and no private key. Exit code 0 says that all
    holds, 1 that something was changed or contradicts itself, 2 that it could
    not be looked at, and 3 that nothing is wrong, but something is not here
    that whole records have. "Verified alone" is said of one side's records:
    whoever has that side's key could have made them anew.
    """
    from fedglm.audit.verify.verification import verify as verify_records

    verification = verify_records(
        folder, server=server or [], sites=site or [], keys=[parse_key(text) for text in key or []]
    )
    if as_json:
        typer.echo(json.dumps(build_json(verification), indent=1))
    else:
        _print(verification, every=every)
    if code := choose_exit_code(verification):
        raise typer.Exit(code)


def choose_exit_code(verification: "Verification") -> int:
    """Return the exit code of a command for a verdict."""
    from fedglm.audit.records.checks import Verdict

    return {Verdict.WRONG: WRONG_CODE, Verdict.OPEN: OPEN_CODE}.get(verification.verdict, 0)


def build_json(verification: "Verification") -> dict[str, Any]:
    """Return all that is printed, as plain values."""
    checks = [
        {"subject": c.subject, "check": c.name, "held": c.passed, "missing": c.missing, "found": c.detail}
        for c in verification.checks
    ]
    heads = [
        {"subject": log.subject, "entries": log.size, "key": log.keys[-1].hex, "root": log.compute_root(log.size)}
        for log in verification.logs
    ]
    verdict, scope = verification.verdict.value, verification.scope.value
    return {"verdict": verdict, "scope": scope, "held": verification.passed, "checks": checks, "logs": heads}


def _print(verification: "Verification", *, every: bool) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from fedglm.audit.records.checks import Verdict, select_failed, select_missing
    from fedglm.cli.terminal.tables import wide_console

    words = {True: "[green]held[/green]", False: "[bold red]NOT HELD[/bold red]", None: "[yellow]open[/yellow]"}
    console = wide_console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("record", "check", ""):
        table.add_column(heading, no_wrap=True)
    table.add_column("found", overflow="fold")
    for subject in dict.fromkeys(check.subject for check in verification.checks):
        own = [check for check in verification.checks if check.subject == subject]
        passed = sum(check.passed is True for check in own)
        status = words[False if select_failed(own) else None if select_missing(own) else True]
        table.add_row(f"[bold]{escape(subject)}[/bold]", "", status, f"{passed} of {len(own)} checks hold")
        for check in own:
            if every or not check.passed:
                table.add_row("", check.name, words[check.passed], escape(check.detail))
    console.print(table)
    console.print(_describe_verdict(verification), soft_wrap=True)
    if verification.verdict is Verdict.WHOLE and not any(check.name == "known key" for check in verification.checks):
        console.print("whose keys these are, the records alone say; --key SITE.pub holds them to what you know")


_BASIS = {
    "server": "the server's records alone; --site holds them to a site's",
    "site": "a site's records alone; --server holds them to the server's",
    "proof": "by the key that it names itself; --key says whose it must be",
}
"""What a verdict on one side's records rests on, by its scope."""


def _describe_verdict(verification: "Verification") -> str:
    """Describe the verdict in a line of rich markup."""
    from fedglm.audit.records.checks import Verdict, select_failed, select_missing

    total = len(verification.checks)
    counted = f"{sum(log.size for log in verification.logs)} entries, {total} checks, nothing is wrong"
    if verification.verdict is Verdict.WRONG:
        count = len(select_failed(verification.checks))
        return f"[bold red]not verified[/bold red]: {count} of {total} checks do not hold"
    if verification.verdict is Verdict.OPEN:
        count = len(select_missing(verification.checks))
        return f"[yellow]open, not whole[/yellow]: nothing is wrong, and {count} of {total} checks lack what is missing"
    if verification.verdict is Verdict.ALONE:
        return f"[green]verified alone[/green]: {counted}: {_BASIS[verification.scope]}"
    return f"[green]verified[/green]: {counted}"
