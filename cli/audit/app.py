"""`fedglm audit`: commands for a compliance officer who audits a node or a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedglm.cli import options
from fedglm.cli.audit.attack import attack
from fedglm.cli.audit.canaries import canaries
from fedglm.cli.audit.export import export, prove
from fedglm.cli.audit.report import report
from fedglm.cli.audit.verify import verify

if TYPE_CHECKING:  # `--help` must not wait for the accountants
    from fedglm.privacy.ledger.ledger import Ledger
    from fedglm.privacy.ledger.spending import Spending
    from fedglm.privacy.policy.policy import Policy

app = typer.Typer(help="What a compliance officer asks of a node or of a run.", no_args_is_help=True)


app.command()(verify)
app.command()(report)
app.command()(canaries)
app.command()(attack)
app.command()(export)
app.command()(prove)


@app.command()
def ledger(
    node: Annotated[
        Path, typer.Argument(metavar="NODE", help="A node's folder (RUN/nodes/ID), its custody folder, or the ledger.")
    ],
    delta: Annotated[
        float | None, typer.Option(help="Tell epsilon at this delta instead of the site's policy's.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Print a node's privacy ledger: what was released, and what that has spent of the data set's budget.

    The whole hash chain is verified first. Epsilon is for all runs on the data set together, by three accountants:
    PRV (Opacus) and PLD (dp-accounting) are tight, and the greater of them counts; RDP is looser.

    [bold]fedglm audit ledger runs/hospital-20270101-120000/nodes/site-0[/bold]
    """
    from fedglm.audit.records.snapshot import snapshot
    from fedglm.privacy.custody.store import LEDGER, POLICY
    from fedglm.privacy.errors import LedgerError
    from fedglm.privacy.ledger.ledger import Ledger

    path = _find(node, LEDGER)
    policy_path = path.with_name(POLICY)
    # Only its delta and budget are printed; its signature is verified by the node, which has the site's key.
    policy = _read_policy(policy_path) if policy_path.is_file() else None
    chosen = delta if delta is not None else policy.delta if policy else None
    with snapshot(path) as copy:  # a copy, since the file is evidence
        try:
            summary = _summarize(Ledger(copy), chosen, policy.epsilon if policy else None)
        except LedgerError as exc:
            raise LedgerError(str(exc).replace(str(copy), str(path))) from exc
    if as_json:
        from fedglm.run_folder.rows import to_json

        typer.echo(to_json(summary, indent=1))
    else:
        _print_summary(path, summary)


def _read_policy(path: Path) -> "Policy":
    from fedglm.core.untrusted_files import read_regular
    from fedglm.privacy.errors import PolicyError
    from fedglm.privacy.policy.policy import Policy
    from fedglm.privacy.policy.policy_file import MAX_BYTES

    try:
        text = read_regular(path, MAX_BYTES).decode()
    except (OSError, UnicodeDecodeError) as exc:
        raise PolicyError(f"cannot read {path}: {exc}") from exc
    return Policy.from_toml(text, origin=str(path))


def _find(node: Path, name: str) -> Path:
    from fedglm.privacy.custody.store import FOLDER

    for path in (node, node / name, node / FOLDER / name):
        if path.is_file():
            return path
    raise typer.BadParameter(f"{node} holds no {name}: name a node's folder, such as RUN/nodes/site-0")


def _summarize(ledger: "Ledger", delta: float | None, budget: float | None) -> dict[str, Any]:
    """Return the content of the output as plain values."""
    sets: dict[str, dict[str, Any]] = {}
    for row in ledger.rows():
        charge = row.charge
        if charge.data_set not in sets:
            spending = ledger.spending(charge.data_set)
            sets[charge.data_set] = {"budget": budget, "delta": delta, **_describe_spending(spending, delta)}
    stretches = [
        {
            "releases": stretch.count,
            "rows": [stretch.first.number, stretch.last.number],
            "data_set": stretch.first.charge.data_set,
            "run": stretch.first.charge.run,
            "rounds": [stretch.first.charge.round, stretch.last.charge.round],
            "purpose": stretch.first.charge.purpose,
            "since": stretch.first.time,
            "until": stretch.last.time,
            "plan": stretch.first.charge.plan,
            "policy": stretch.first.charge.policy,
            "mechanism": stretch.first.charge.mechanism and stretch.first.charge.mechanism.to_fields(),
        }
        for stretch in ledger.summary()
    ]
    head = ledger.head
    return {"rows": head.rows, "head": head.sha256, "data_sets": sets, "charges": stretches}


def _describe_spending(spending: "Spending", delta: float | None) -> dict[str, Any]:
    spent = None if delta is None else spending.at(delta)
    figures = {name: spent and getattr(spent, name) for name in ("epsilon", "prv", "pld", "rdp")}
    return {**figures, "without_noise": spending.without_noise}


def _print_summary(path: Path, summary: dict[str, Any]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from fedglm.cli.terminal.tables import finite, wide_console

    console = wide_console()
    table = Table(box=box.SIMPLE_HEAD, title=f"releases, {summary['rows']} in all", title_justify="left")
    for heading in ("releases", "data set", "run", "rounds", "what", "noise", "rate", "steps", "clip", "unit"):
        left = heading in ("data set", "run", "what", "unit")
        table.add_column(heading, justify="left" if left else "right", overflow="fold")
    for line in summary["charges"]:
        mechanism = line["mechanism"]
        how = ("[red]none[/red]", "", "", "", "")
        if mechanism:
            how = (
                f"{mechanism['noise_multiplier']:.3g}",
                f"{mechanism['sampling_rate']:.3g}",
                str(mechanism["steps"]),
                f"{mechanism['clipping_norm']:.3g}",
                escape(mechanism["unit"]),
            )
        # A server names its run, and it may name it like a tag of rich.
        names = (escape(line["data_set"]), escape(line["run"][:8]))
        what = (*names, _format_range(line["rounds"]), escape(line["purpose"]))
        table.add_row(str(line["releases"]), *what, *how)
    console.print(table)
    totals = Table(box=box.SIMPLE_HEAD, title="spent, for the data set's whole life", title_justify="left")
    for heading in ("data set", "epsilon", "of", "delta", "PRV", "PLD", "RDP"):
        totals.add_column(heading, justify="left" if heading == "data set" else "right", overflow="fold")
    for name, spent in summary["data_sets"].items():
        figures = [finite(spent[key], ".3f") for key in ("prv", "pld", "rdp")]
        totals.add_row(
            escape(name),
            "[red]none holds[/red]" if spent["without_noise"] else f"[bold]{finite(spent['epsilon'], '.3f')}[/bold]",
            finite(spent["budget"], ".3g"),
            finite(spent["delta"], ".2g"),
            *figures,
        )
    console.print(totals)
    if any(spent["delta"] is None and not spent["without_noise"] for spent in summary["data_sets"].values()):
        console.print("no policy beside the ledger names a delta: give --delta to see epsilon")
    verified = f"chain verified up to row {summary['rows']}, head {summary['head'][:16]}: {path}"
    console.print(verified, markup=False, soft_wrap=True)


def _format_range(pair: list[int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}-{pair[1]}"
