"""`fedglm client`: a site's keys, its policy, its node."""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fedglm.cli import options
from fedglm.cli.client.metrics import metrics
from fedglm.cli.client.model import model
from fedglm.cli.client.plan import plan
from fedglm.cli.client.predict import predict

if TYPE_CHECKING:  # else `--help` would wait for cryptography
    from fedglm.cli.process.daemon import Daemon
    from fedglm.client.site.folder import Site

app = typer.Typer(help="A site: its keys, its policy, its node.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="[FOLDER]", help="The site's folder.")]

_HERE = Path()
_PATIENCE_S = 15.0  # for a node to be connected; without the server it goes on trying


@app.command()
def keygen(
    kit: Annotated[Path, typer.Argument(metavar="[KIT]", help="The unpacked kit, or a site's folder.")] = _HERE,
    out: Annotated[Path | None, typer.Option(help="The site's folder; the kit's own without it.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Make new keys, as where the old ones were revoked; those are moved away.")
    ] = False,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Lock the new keys with one, asked for or from FEDGLM_PASSPHRASE_FILE.")
    ] = False,
    state_key: Annotated[
        bool, typer.Option("--state-key", help="Also make the key that encrypts the node's own state on the disk.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Make the site's keys, and the file SITE.pub to hand over to the server.

    [bold]fedglm client keygen berlin[/bold]

    The keys stay here, readable by you alone. Keys that are there are kept.
    With a passphrase somebody must give it whenever the node starts.
    """
    from fedglm.client.site.folder import open_site
    from fedglm.client.site.site_keys import make_keys

    if out is not None:
        _copy_startup_kit(kit, out)
    site = open_site(out or kit)
    chosen = _ask_new_passphrase() if passphrase else None
    done = make_keys(site.folder, site.name, site.flower_key, site.signing_key, replace=replace, passphrase=chosen)
    state_key_note = _create_state_key(site, chosen) if state_key else None
    if as_json:
        output = {"site": site.name, "file": str(done.path), "new": done.is_new, "made": done.identity.made}
        typer.echo(json.dumps({**output, "fingerprints": done.identity.fingerprints}, indent=1))
        return
    typer.echo(f"{site.name}: keys {'made' if done.is_new else 'were there already'}; hand over {done.path}")
    typer.echo("and compare by telephone with the people who run the server:")
    for name, fingerprint in done.identity.fingerprints.items():
        typer.echo(f"  {name:<8} {fingerprint}")
    if state_key_note is not None:
        typer.echo(state_key_note)
    if replace:
        typer.echo("the policy must be signed with the new key: fedglm client sign-policy")


@app.command("sign-policy")
def sign_policy(
    folder: Folder = _HERE,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Sign although there are rows that no run can use; they are left out.")
    ] = False,
) -> None:
    """Put the policy.toml in the site's folder in force, as it is now.

    The first time this opens the site's ledger. After a change, even of a
    comment, sign again; until then the older policy stays in force.
    All records are held to site.toml, for in a run nobody hears of a row
    that cannot be used.
    """
    from fedglm.client.site.folder import open_site
    from fedglm.client.site.policy_signing import sign_site_policy
    from fedglm.compression.codec import codec_names
    from fedglm.privacy.policy.rules import find_missing_keys

    site = open_site(folder)
    policy, left_out = sign_site_policy(site, leave_out=leave_out)
    typer.echo(f"the policy of {site.name} for {policy.data_set} is in force: {policy.sha256[:16]}")
    if left_out:
        typer.echo(f"note: left out in every run: {left_out}", err=True)
    if unknown := sorted({*policy.codecs} - {*codec_names(), "*"}):
        typer.echo(
            f"note: this fedglm knows no codec {', '.join(unknown)}; it knows {', '.join(codec_names())}", err=True
        )
    if missing := find_missing_keys(policy):
        typer.echo(f"note: it permits no run at all; not given are {', '.join(missing)}", err=True)
    elif policy.without_differential_privacy:
        typer.echo("it permits updates without noise: no privacy guarantee at all")
    else:
        typer.echo(f"privacy budget: epsilon {policy.epsilon:g}, delta {policy.delta:g}, for each {policy.unit}")


@app.command()
def check(folder: Folder = _HERE, as_json: options.Json = False) -> None:
    """Look at all that the node needs, and say what is wrong and how to mend it.

    Clock, certificate, keys, disk, records, policy, and the way to the server.
    It exits with 2 where the node would not do its work.
    """
    from fedglm.cli.terminal.findings import print_findings
    from fedglm.client.preflight.checks import preflight

    findings = preflight(folder)
    if as_json:
        typer.echo(json.dumps([finding.as_json() for finding in findings], indent=1))
    else:
        print_findings(findings)
    if any(finding.level == "failure" for finding in findings):
        raise typer.Exit(2)


@app.command()
def start(
    folder: Folder = _HERE,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, for systemd or a container.")] = False,
) -> None:
    """Check everything, then start the node; it connects outwards, and no port is opened to others."""
    from fedglm.cli.process.daemon import DaemonError
    from fedglm.cli.process.flower_environment import make_flower_environment
    from fedglm.cli.process.supervisor import make_supervised_command
    from fedglm.client.link.faults import LinkFault, explain
    from fedglm.client.link.state import LinkState, clear_link_state
    from fedglm.client.site.folder import open_site

    site = open_site(folder)
    daemon = _daemon(site)
    if (pid := daemon.pid()) is not None:
        raise DaemonError(f"the node of {site.name} runs already, as process {pid}: see fedglm client status")
    _refuse_unfit(site)
    argv, env = node_command(site), make_flower_environment(site.state / "flwr")
    if foreground:
        raise typer.Exit(daemon.run(argv, env))
    deadline = time.monotonic() + _PATIENCE_S
    clear_link_state(site.state)

    def is_decided() -> bool:
        link = LinkState.read(site.state)
        decided = link is not None and (link.connected or link.fault is LinkFault.NOT_ADMITTED)
        return decided or time.monotonic() > deadline

    pid = daemon.start(make_supervised_command(argv, daemon.log), env, ready=is_decided)
    link = LinkState.read(site.state)
    if link is not None and link.fault is LinkFault.NOT_ADMITTED:
        daemon.stop()
        _raise_rejected(site)
    if link is not None and link.connected:
        outcome = f"connected to {site.server}"
    else:
        reason = "" if link is None or link.fault is None else f" ({explain(link.fault, site.server).detail})"
        outcome = f"there is no link to {site.server} yet{reason}; it goes on trying"
    typer.echo(f"the node of {site.name} is process {pid}; {outcome}; log {daemon.log}")


@app.command()
def stop(folder: Folder = _HERE) -> None:
    """End the node and all that it started; it goes on where it was when it is started again."""
    from fedglm.client.site.folder import open_site

    site = open_site(folder)
    stopped = _daemon(site).stop()
    typer.echo(f"the node of {site.name} has ended" if stopped else f"no node of {site.name} runs")


@app.command()
def status(folder: Folder = _HERE, as_json: options.Json = False) -> None:
    """Show whether the node runs, what the site permits, what has left, and what it refused."""
    from fedglm.cli.client.status import describe_site, print_status
    from fedglm.client.site.folder import open_site

    site = open_site(folder)
    description = describe_site(site, _daemon(site))
    if as_json:
        typer.echo(json.dumps(description, indent=1))
    else:
        print_status(description)


app.command()(metrics)
app.command()(model)
app.command()(plan)
app.command()(predict)


def _create_state_key(site: "Site", passphrase: str | None) -> str:
    """Create the key for the node's state unless there is one, and return what is left to do."""
    from fedglm.privacy.keys.vault import Vault

    named = site.settings.site.state_key
    path = site.resolve(named or "state.key")
    if not path.exists():
        Vault.create(path, passphrase)
    remaining = "site.toml names it" if named else f'put state_key = "{path.name}" into [site] of site.toml'
    return f"the key for the node's state is {path}: {remaining}; without the key that state is lost"


def _ask_new_passphrase() -> str:
    from fedglm.privacy.keys.passphrase import read_or_prompt

    return read_or_prompt(lambda: str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True)))


def _copy_startup_kit(kit: Path, out: Path) -> None:
    """Copy the files of the startup kit, except those that exist already and may have been edited."""
    from fedglm.client.site.settings import KIT_FILE, SITE_FILE, SiteError
    from fedglm.core.files import storage_errors

    if not (kit / KIT_FILE).is_file():
        raise SiteError(f"{kit} holds no {KIT_FILE}: name the folder of the kit that the server's operator handed over")
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for name in (KIT_FILE, "ca.pem", SITE_FILE, "policy.toml", "README.txt"):
            if (kit / name).is_file() and not (out / name).exists():
                shutil.copy(kit / name, out / name)


def _raise_rejected(site: "Site") -> NoReturn:
    from fedglm.client.site.settings import SiteError

    raise SiteError(
        f"the server turns {site.name} away: its keys are not enrolled, or were revoked; hand {site.name}.pub to the "
        "people who run the server, after a revocation with new keys (fedglm client keygen --replace, then sign-policy)"
    )


def node_command(site: "Site") -> list[str]:
    """Return the command that runs the site's node.

    Raises:
        SiteError: The path of the folder cannot be passed to Flower.
    """
    from fedglm.client.supernode.main import make_node_config

    make_node_config(site)
    return [sys.executable, "-m", "fedglm.cli.client.node", str(site.folder)]


def _daemon(site: "Site") -> "Daemon":
    from fedglm.cli.process.daemon import Daemon

    return Daemon(site.state, "supernode")


def _refuse_unfit(site: "Site") -> None:
    """Do not start a node that would not do its work; say what is wrong."""
    from fedglm.cli.terminal.findings import refuse_failures
    from fedglm.client.preflight.checks import preflight
    from fedglm.client.site.settings import SiteError

    refuse_failures(preflight(site.folder), SiteError, lambda finding: f"{finding.check}: {finding.sentence()}")
