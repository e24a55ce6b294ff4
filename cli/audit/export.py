"""`fedglm audit export` and `fedglm audit prove`: records for another party."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedglm.cli import options

if TYPE_CHECKING:  # else `--help` would wait for cryptography
    from fedglm.privacy.keys.signing import SigningKey


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, or a site's.")],
    out: Annotated[Path | None, typer.Option(help="The archive; DIR-ROLE.zip without it.")] = None,
    role: Annotated[str, typer.Option(help="Who will read it: regulator, auditor or public.")] = "auditor",
    key: Annotated[
        Path | None, typer.Option(help="File of the key that signs the bundle; the run's or the site's own without it.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write a signed archive of all records that a role may read.

    [bold]fedglm audit export runs/hospital-20270101-120000 --role regulator[/bold]

    Whole files, and no private key, salt, state or model among them. Who gets
    it runs fedglm audit verify on the archive as it is.
    """
    from fedglm.audit.bundle.contents import ROLES
    from fedglm.audit.bundle.export import export_bundle as write

    if role not in ROLES:
        raise typer.BadParameter(f"--role {role}: take {', '.join(ROLES)}")
    path = out or Path(f"{folder.absolute().name}-{role}.zip")
    names = write(folder, path, role, _load_signing_key(folder, key))
    if as_json:
        typer.echo(json.dumps({"bundle": str(path), "role": role, "files": names}, indent=1))
    else:
        typer.echo(f"{path}: {len(names)} files for the role {role}, signed; fedglm audit verify {path} verifies it")


def prove(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, a node's or site's, or a log.")],
    entry: Annotated[int | None, typer.Option(min=1, help="Prove that this entry is in the log.")] = None,
    since: Annotated[int | None, typer.Option(min=1, help="Prove that the first so many entries still are.")] = None,
) -> None:
    """Print a proof about a log, which needs none of its other entries (RFC 6962).

    [bold]fedglm audit prove RUN/nodes/site-0 --entry 7 > proof.json[/bold]

    fedglm audit verify proof.json checks it.
    """
    from fedglm.audit.records.proofs import prove_consistency, prove_inclusion

    if (entry is None) == (since is None):
        raise typer.BadParameter("give --entry or --since, one of them")
    path = _find_log(folder)
    proof = prove_inclusion(path, entry) if entry is not None else prove_consistency(path, since or 1)
    typer.echo(json.dumps(proof, indent=1))


def _find_log(folder: Path) -> Path:
    """Return the log in a folder of a run, a node or a site."""
    for path in (folder, folder / "log.sqlite", folder / "custody" / "log.sqlite", folder / "audit" / "log.sqlite"):
        if path.is_file():
            return path
    raise typer.BadParameter(f"{folder} holds no log: name the folder of a run, of a node or of a site")


def _load_signing_key(folder: Path, named: Path | None) -> "SigningKey":
    """Load the named key, or that of the records' owner."""
    from fedglm.privacy.keys.signing import SigningKey
    from fedglm.run_folder.names import SERVER_KEY

    if named is not None:
        if not named.is_file():
            raise typer.BadParameter(
                f"--key {named}: there is no such file: name a site.key or a project's signing key"
            )
        return SigningKey.load(named)
    for path in (folder / SERVER_KEY, folder / "custody" / "site.key", folder / "site.key"):
        if path.is_file():
            return SigningKey.load(path)
    raise typer.BadParameter(f"{folder} holds no key to sign with: name one with --key, such as the project's")
