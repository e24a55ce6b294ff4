"""Output of `fedglm client status`: values for machines, a table for people."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # else `--help` would wait for cryptography
    from fedglm.cli.process.daemon import Daemon
    from fedglm.client.site.folder import Site


def describe_site(site: "Site", daemon: "Daemon") -> dict[str, Any]:
    """Return the state of a site, as values that JSON can represent.

    Raises:
        PrivacyError: Key, policy, ledger or log of refusals is damaged.
    """
    from fedglm.client.link.faults import explain
    from fedglm.client.site.status import read_status

    status = read_status(site)
    pid = daemon.pid()
    link = status.link if pid is not None else None  # what a process that has ended wrote last, says nothing of now
    fault = link.fault if link is not None else None
    budget = status.budget
    last = status.last_refusal
    return {
        "site": site.name,
        "federation": site.kit.federation,
        "server": site.server,
        "pid": pid,
        "connected": link is not None and link.connected,
        "link_since": link.since.isoformat(timespec="seconds") if link is not None else None,
        "link_fault": {"code": fault.value, **explain(fault, site.server)._asdict()} if fault is not None else None,
        "log": str(daemon.log),
        "last_work": status.last_work.isoformat(timespec="seconds") if status.last_work else None,
        "policy": status.policy.sha256 if status.policy else None,
        "data_set": status.policy.data_set if status.policy else None,
        "lacking": list(status.missing_keys),
        "releases": budget.releases if budget else 0,
        "last_release": budget.last if budget else None,
        # Infinite once something was released without noise; JSON has no infinity.
        "epsilon_spent": None if budget is None or budget.without_noise else budget.spent,
        "epsilon": budget.epsilon if budget else None,
        "epsilon_left": budget.left if budget else None,
        "without_noise": bool(budget and budget.without_noise),
        "refusals": status.refusals,
        "last_refusal": dict(zip(("time", "rule", "reason"), last, strict=True)) if last else None,
    }


def print_status(status: dict[str, Any]) -> None:
    """Print the state of a site as a table."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from fedglm.cli.terminal.tables import wide_console

    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    runs = f"[green]runs[/green], process {status['pid']}" if status["pid"] else "[yellow]does not run[/yellow]"
    table.add_row("node", f"{escape(status['site'])} of {escape(status['federation'])} {runs}")
    table.add_row(
        "server", f"{escape(status['server'])}, {_describe_link(status)}" if status["pid"] else escape(status["server"])
    )
    if (fault := status["link_fault"]) is not None:
        table.add_row("", f"[yellow]{escape(fault['detail'])}[/yellow]: {escape(fault['remedy'])}")
    table.add_row("last work", _format_time(status["last_work"]))
    table.add_row("policy", _describe_policy(status))
    released = (
        f"{status['releases']}, the last {_format_time(status['last_release'])}" if status["releases"] else "nothing"
    )
    table.add_row("released", released)
    table.add_row("budget", _describe_budget(status))
    refused, last = status["refusals"], status["last_refusal"]
    refusals = (
        f"{refused}, the last {_format_time(last['time'])} by rule {last['rule']}: {last['reason']}" if last else "none"
    )
    table.add_row("refused", escape(refusals))
    table.add_row("log", escape(status["log"]))
    wide_console().print(table)


def _format_time(time: str | None) -> str:
    return f"{time[:10]} {time[11:19]} UTC" if time else "never"


def _describe_link(status: dict[str, Any]) -> str:
    if status["link_since"] is None:
        return "[yellow]not connected yet[/yellow]"
    link = "[green]connected[/green]" if status["connected"] else "[yellow]not connected[/yellow]"
    return f"{link} since {_format_time(status['link_since'])}"


def _describe_policy(status: dict[str, Any]) -> str:
    from rich.markup import escape

    if status["policy"] is None:
        return "[yellow]none is signed: nothing may leave[/yellow]"
    if status["lacking"]:
        return f"[yellow]permits no run at all: not given are {', '.join(status['lacking'])}[/yellow]"
    return f"{escape(status['data_set'])}, {status['policy'][:16]}"


def _describe_budget(status: dict[str, Any]) -> str:
    if status["without_noise"]:
        return "[yellow]something was released without noise: no epsilon holds[/yellow]"
    if status["epsilon"] is None:
        return "-" if status["policy"] is None or status["lacking"] else "the policy sets no limit"
    return f"epsilon {status['epsilon_left']:.2f} left of {status['epsilon']:g}"
