"""`fedglm audit verify`: yes or no, and why."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedglm.cli import options

if TYPE_CHECKING:  # else `--help` would wait for the accountants
    from fedglm.privacy.audit_verify import Verification
    from fedglm.privacy.keys import PublicKey

NOT_HELD = 1
"""Exit code where a record was changed, or contradicts another."""


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, a site's, a bundle, or a proof.")],
    server: Annotated[
        Path | None,
        typer.Option(help="The run's folder at the server, a bundle of it, or its log: to hold a site's records to."),
    ] = None,
    site: Annotated[
        list[Path] | None, typer.Option(help="A site's folder or bundle, not in DIR; again for each.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="A key that is known from elsewhere, 64 digits or a SITE.pub; it must sign a log here."),
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
    not be looked at.
    """
    from fedglm.privacy.audit_verify import verify_anything

    found = verify_anything(folder, server=server, sites=site or [], keys=[_key(text) for text in key or []])
    if as_json:
        typer.echo(json.dumps(about(found), indent=1))
    else:
        _print(found, every=every)
    if not found.held:
        raise typer.Exit(NOT_HELD)


def about(found: "Verification") -> dict[str, Any]:
    """All that is printed, as plain values."""
    checks = [{"subject": c.subject, "check": c.name, "held": c.held, "found": c.said} for c in found.checks]
    logs = [*([found.server] if found.server else []), *found.sites]
    heads = [
        {"subject": log.subject, "entries": log.size, "key": log.keys[-1].hex, "root": log.root(log.size)}
        for log in logs
    ]
    return {"held": found.held, "checks": checks, "logs": heads}


def _print(found: "Verification", *, every: bool) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from fedglm.cli.tables import wide_console
    from fedglm.privacy.audit_checks import failed

    words = {True: "[green]held[/green]", False: "[bold red]NOT HELD[/bold red]", None: "[yellow]open[/yellow]"}
    console = wide_console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("record", "check", ""):
        table.add_column(heading, no_wrap=True)
    table.add_column("found", overflow="fold")
    for subject in dict.fromkeys(check.subject for check in found.checks):
        own = [check for check in found.checks if check.subject == subject]
        held = sum(check.held is True for check in own)
        whole = words[True] if not failed(own) else words[False]
        table.add_row(f"[bold]{escape(subject)}[/bold]", "", whole, f"{held} of {len(own)} checks hold")
        for check in own:
            if every or not check.held:
                table.add_row("", check.name, words[check.held], escape(check.said))
    console.print(table)
    wrong = failed(found.checks)
    entries = sum(log.size for log in (*found.sites, *([found.server] if found.server else [])))
    if wrong:
        console.print(f"[bold red]not verified[/bold red]: {len(wrong)} of {len(found.checks)} checks do not hold")
    else:
        console.print(f"[green]verified[/green]: {entries} entries, {len(found.checks)} checks, nothing is wrong")


def _key(text: str) -> "PublicKey":
    from fedglm.privacy.keys import PublicKey
    from fedglm.privacy.site_identity import SiteIdentity

    path = Path(text)
    try:
        if path.suffix != ".pub" and not path.is_file():
            return PublicKey.from_hex(text)
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise typer.BadParameter(f"--key {text}: it is no text, so no site handed it over: name its SITE.pub") from None
    except OSError as exc:
        said = f"--key {text[:100]}: it cannot be read ({exc.strerror}): name a SITE.pub, or give the key's 64 digits"
        raise typer.BadParameter(said) from exc
    return SiteIdentity.from_text(content, origin=text).signing
