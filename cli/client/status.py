"""What `fedglm client status` tells."""

from typing import TYPE_CHECKING, Any

from fedglm.cli.process.connections import is_connected

if TYPE_CHECKING:  # else `--help` would wait for cryptography
    from fedglm.cli.process.daemon import Daemon
    from fedglm.client.site.folder import Site


def about(site: "Site", daemon: "Daemon") -> dict[str, Any]:
    """All that is printed, as plain values.

    Raises:
        PrivacyError: Key, policy, ledger or log of refusals are damaged.
    """
    from fedglm.client.site.status import read_status

    found = read_status(site)
    budget = found.budget
    last = found.last_refusal
    return {
        "site": site.name,
        "federation": site.kit.federation,
        "server": site.server,
        "pid": daemon.pid(),
        "connected": is_connected(daemon.members(), site.server),
        "log": str(daemon.log),
        "last_work": found.last_work.isoformat(timespec="seconds") if found.last_work else None,
        "policy": found.policy.sha256 if found.policy else None,
        "data_set": found.policy.data_set if found.policy else None,
        "lacking": list(found.missing_keys),
        "releases": budget.releases if budget else 0,
        "last_release": budget.last if budget else None,
        # Infinite once something was released without noise, which JSON cannot say.
        "epsilon_spent": None if budget is None or budget.without_noise else budget.spent,
        "epsilon": budget.epsilon if budget else None,
        "epsilon_left": budget.left if budget else None,
        "without_noise": bool(budget and budget.without_noise),
        "refusals": found.refusals,
        "last_refusal": dict(zip(("time", "rule", "reason"), last, strict=True)) if last else None,
    }


def print_status(found: dict[str, Any]) -> None:
    """The same for people."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from fedglm.cli.terminal.tables import wide_console

    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    runs = f"[green]runs[/green], process {found['pid']}" if found["pid"] else "[yellow]does not run[/yellow]"
    table.add_row("node", f"{escape(found['site'])} of {escape(found['federation'])} {runs}")
    link = "[green]connected[/green]" if found["connected"] else "[yellow]not connected[/yellow]"
    table.add_row("server", f"{escape(found['server'])}, {link}" if found["pid"] else escape(found["server"]))
    table.add_row("last work", _when(found["last_work"]))
    table.add_row("policy", _policy(found))
    released = f"{found['releases']}, the last {_when(found['last_release'])}" if found["releases"] else "nothing"
    table.add_row("released", released)
    table.add_row("budget", _budget(found))
    refused, last = found["refusals"], found["last_refusal"]
    said = f"{refused}, the last {_when(last['time'])} by rule {last['rule']}: {last['reason']}" if last else "none"
    table.add_row("refused", escape(said))
    table.add_row("log", escape(found["log"]))
    wide_console().print(table)


def _when(time: str | None) -> str:
    return f"{time[:10]} {time[11:19]} UTC" if time else "never"


def _policy(found: dict[str, Any]) -> str:
    from rich.markup import escape

    if found["policy"] is None:
        return "[yellow]none is signed: nothing may leave[/yellow]"
    if found["lacking"]:
        return f"[yellow]permits no run at all: not given are {', '.join(found['lacking'])}[/yellow]"
    return f"{escape(found['data_set'])}, {found['policy'][:16]}"


def _budget(found: dict[str, Any]) -> str:
    if found["without_noise"]:
        return "[yellow]something was released without noise: no epsilon holds[/yellow]"
    if found["epsilon"] is None:
        return "-" if found["policy"] is None or found["lacking"] else "the policy sets no limit"
    return f"epsilon {found['epsilon_left']:.2f} left of {found['epsilon']:g}"
