"""`fedglm provision`: the project folder of a server, and a startup kit for each site."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedglm.cli import options

if TYPE_CHECKING:  # else `--help` would wait for cryptography
    from fedglm.server.project.folder import Project
    from fedglm.server.project.settings import ProjectSettings


def provision(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The project's folder: a new one, or one to go on with.")
    ],
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="DNS name or IP address under which sites reach the server; again for more, the first counts."
        ),
    ] = None,
    site: Annotated[list[str] | None, typer.Option(help="Make a kit for this site; may be given again.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the federation; the folder's without it.")] = None,
    port: Annotated[int | None, typer.Option(help="Port for the sites; 8443 without it.")] = None,
    control_port: Annotated[
        int | None, typer.Option(help="Port for this machine alone, to start runs; the next one without it.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(help="Address of this machine to listen on; 0.0.0.0 (all) without it.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Validity of a certificate that is issued.")] = 365,
    renew: Annotated[bool, typer.Option("--renew", help="Issue a new server certificate; keys stay.")] = False,
    as_json: options.Json = False,
) -> None:
    """Make a server's project folder: certificates, keys, and a kit for each site.

    [bold]fedglm provision fl --host fl.example.org --site berlin --site bern[/bold]

    Again, it adds what is missing and replaces no key:
    [bold]fedglm provision fl --site basel[/bold]
    [bold]fedglm provision fl --renew[/bold]

    Each kit (kits/SITE.zip) holds only what is public. The site makes its keys
    itself, and hands SITE.pub back: [bold]fedglm server enrol SITE.pub -C fl[/bold]
    """
    from fedglm.privacy.keys.site_identity import check_site_name
    from fedglm.server.project.enrolment import list_provisioned_sites
    from fedglm.server.project.folder import Project
    from fedglm.server.project.kits import write_kit

    wanted = [check_site_name(one) for one in site or []]  # before anything is made
    given = {"name": name, "hosts": host or None, "port": port, "control_port": control_port, "listen": listen}
    settings = _merge_settings(folder, given)
    project = Project.make(folder, settings, days=days, renew=renew)
    # Write all startup kits again, since the server's address may have changed.
    kits = {one: write_kit(project, one) for one in sorted({*list_provisioned_sites(project), *wanted})}
    description = _describe_project(project, kits)
    if as_json:
        import json

        typer.echo(json.dumps(description, indent=1))
    else:
        _print_project(project, description)


def _merge_settings(folder: Path, given: dict[str, Any]) -> "ProjectSettings":
    """Combine the options with the settings of the project, if there is one."""
    from fedglm.server.project.folder import Project, is_project
    from fedglm.server.project.settings import parse_settings

    values = {key: value for key, value in given.items() if value is not None}
    if is_project(folder):
        before = Project.open(folder).settings
        if values.get("name", before.name) != before.name:
            raise typer.BadParameter(f"the federation is called {before.name}; its name stands in what sites hold")
        values = before.model_dump(mode="json") | values
    elif "hosts" not in values:
        raise typer.BadParameter(
            "--host is missing: under which DNS name or IP address do the sites reach this server?"
        )
    else:
        values = {"name": folder.absolute().name} | values
        if "port" in values and "control_port" not in values:
            values["control_port"] = values["port"] + 1
    return parse_settings(values, origin=str(folder))


def _describe_project(project: "Project", kits: dict[str, Path]) -> dict[str, Any]:
    """Return all that is printed, as values that JSON can represent."""
    from fedglm.server.project.certificates import read_certificate
    from fedglm.server.project.kits import format_fingerprint

    certificate = read_certificate(project.certificate)
    return {
        "folder": str(project.folder),
        "name": project.settings.name,
        "address": project.settings.address,
        "certificate": {"ends": certificate.ends.isoformat(), "hosts": list(certificate.hosts)},
        "authority": format_fingerprint(read_certificate(project.authority).sha256),
        "signing": project.signing_key.public.fingerprint(),
        "kits": {name: str(path) for name, path in kits.items()},
    }


def _print_project(project: "Project", description: dict[str, Any]) -> None:
    from rich.markup import escape

    from fedglm.cli.terminal.tables import wide_console

    console = wide_console()
    console.print(
        f"project [bold]{escape(description['name'])}[/bold] in {escape(description['folder'])}", soft_wrap=True
    )
    address = escape(description["address"])  # an IPv6 address has brackets
    console.print(f"sites reach it at {address}; certificate until {description['certificate']['ends'][:10]}, for")
    console.print(f"  {', '.join(description['certificate']['hosts'])}", markup=False, highlight=False)
    console.print("fingerprints, for the sites to compare by telephone:")
    console.print(f"  server's key  {description['signing']}", highlight=False)
    console.print(f"  authority     {description['authority']}", highlight=False)
    if not description["kits"]:
        console.print(f"no kit yet: fedglm provision {project.folder} --site NAME", markup=False, soft_wrap=True)
        return
    console.print("kits, one for each site; nothing in them is secret:")
    for name, path in description["kits"].items():
        console.print(f"  {name}: {path}", markup=False, highlight=False, soft_wrap=True)
    instruction = f"when a site has sent its SITE.pub: fedglm server enrol SITE.pub -C {project.folder}"
    console.print(instruction, markup=False, soft_wrap=True)
