"""`fedglm audit report`: one page for the compliance officer, one file for machines, and a gate for CI."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedglm.cli import options
from fedglm.cli.audit.verify import WRONG_CODE, choose_exit_code

if TYPE_CHECKING:  # else `--help` would wait for the accountants
    from fedglm.audit.records.checks import Verdict
    from fedglm.audit.report.gate import Breach
    from fedglm.audit.report.items import Item


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    site: Annotated[
        list[Path] | None,
        typer.Option(help="A site's folder or bundle, not in RUN; again for each."),
    ] = None,
    profile: Annotated[
        str, typer.Option(help="Whose paragraphs to show, with commas between: hipaa, gdpr, nist-800-226.")
    ] = "hipaa,gdpr,nist-800-226",
    policy: Annotated[
        Path | None, typer.Option(help="Rules that the run must meet, a TOML file as above; exit code 1 where not.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write the audit report of a run: RUN/audit/report.html and report.json.

    [bold]fedglm audit report runs/hospital-20270101-120000[/bold]

    All records are verified first. Each of thirteen items is held, not held,
    or not applicable. It supports evidence for a risk analysis; no report
    makes anybody compliant. Exit code 1 where a record was changed or
    contradicts another, or a rule of --policy is not met; 3 where something
    is not here that whole records have.

    A check in continuous integration, by the rules in a file:
    [bold]fedglm audit report RUN --policy rules.toml[/bold]

    The records of server and sites must be here and verified. Each rule may be
    left out, and then nothing more is asked for:

    noise_multiplier_at_least = 0.7   of every release
    clipping_norm_at_most = 1.0       of every release
    records_per_unit_at_most = 1      of every release
    unit = "patient_id"               what every release must protect
    epsilon_at_most = 8.0             of every data set, computed anew
    delta_at_most = 1e-3              at which epsilon is told
    items = [1, 5, 11]                not one of these may be "not held"
    require = ["verified", "tls"]     what the records must show besides

    Words of require:

    verified          every check holds; asked of every run, named or not
    countersignature  the server has countersigned all that left a site
    signed-updates    the server's log shows the sites' signatures
    tls               each site's log shows by which TLS link updates left
    canaries          an audit of the run's own code and weights was passed
    attack            an attack on them was tried
    no-metrics        nothing but updates left
    retention         each policy says for how long records are kept
    encryption        each policy asks for encrypted state
    """
    from fedglm.audit.report.facts import read_facts
    from fedglm.audit.report.gate import Gate, find_breaches
    from fedglm.audit.report.items import assess_items
    from fedglm.audit.report.page import build_report_json, check_run, read_profile, write_audit_report

    check_run(run)
    profiles = [read_profile(name.strip()) for name in profile.split(",") if name.strip()]
    gate = None if policy is None else Gate.load(policy)
    facts = read_facts(run, site or [])
    items = assess_items(facts)
    breaches = None if gate is None else find_breaches(gate, facts, items)
    page, _ = write_audit_report(facts, items, profiles, breaches)
    if as_json:
        from fedglm.run_folder.rows import to_json

        typer.echo(to_json(build_report_json(facts, items, profiles, breaches), indent=1))
    else:
        _print(page, items, breaches, facts.verification.verdict)
    if code := WRONG_CODE if breaches else choose_exit_code(facts.verification):
        raise typer.Exit(code)


_RECORDS = {
    "whole": "[green]whole[/green]",
    "alone": "[yellow]the server's alone[/yellow], and nothing in them is wrong",
    "open": "[yellow]NOT WHOLE[/yellow]: nothing is wrong, and something is missing, see the page",
    "wrong": "[bold red]NOT WHOLE[/bold red], see the page",
}
"""Description of the records, by the verdict on them."""


def _print(page: Path, items: "list[Item]", breaches: "list[Breach] | None", verdict: "Verdict") -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from fedglm.cli.terminal.tables import wide_console

    styles = {"held": "green", "not held": "yellow", "not applicable": "default"}
    console = wide_console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "item", "status"):
        table.add_column(heading, justify="right" if not heading else "left")
    for item in items:
        table.add_row(str(item.number), item.title, f"[{styles[item.status]}]{item.status}[/]")
    console.print(table)
    console.print(f"records: {_RECORDS[verdict]}")
    for breach in breaches or []:
        console.print(f"[bold red]not met[/bold red]: {breach.rule}: {escape(breach.detail)}", soft_wrap=True)
    if breaches == []:
        console.print("[green]all rules are met[/green]")
    console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
