"""`fedglm validate`: is a light release here what was released, and does this device compute it right."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedglm.cli import options
from fedglm.cli.extras import require_extra
from fedglm.cli.keys import parse_key
from fedglm.cli.terminal.validation_tables import print_fleet, print_validation

if TYPE_CHECKING:  # else `--help` would wait for numpy
    from fedglm.inference.release.trust import Trust
    from fedglm.inference.validation.validation import SignedValidation

FAILED_CODE = 1
"""Exit code if a check fails."""


def validate(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RELEASE", help="Folder of the release; with --fleet, validation files.")
    ],
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            metavar="KEY",
            help="Who must have signed: the server's key, with --fleet those of the devices; 64 digits, or SITE.pub. "
            "May be given again.",
        ),
    ] = None,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Take what anybody made; the result says so.")
    ] = False,
    sign_with: Annotated[
        Path | None, typer.Option(metavar="FILE", help="This device's own private key; writes a signed validation.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The signed validation, with --sign-with.")] = Path("validation.json"),
    fleet: Annotated[bool, typer.Option("--fleet", help="Verify the files of several devices, in one table.")] = False,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of a model's run.")] = 1,
    as_json: options.Json = False,
) -> None:
    """Validate a light release on this device: who signed it, answers, times, memory.

    [bold]fedglm validate RELEASE --key SERVER_KEY --sign-with custody/site.key[/bold]
    [bold]fedglm validate --fleet */validation.json --key berlin.pub --key rome.pub[/bold]

    It needs no torch and no network. Exit code 0 says that no check fails, 1
    that one does, 2 that it could not be looked at.
    """
    trust = _make_trust(key, unverified=unverified, whose="of the devices" if fleet else "of the server")
    if fleet:
        if sign_with is not None:
            raise typer.BadParameter("--fleet reads validations and signs none: leave --sign-with out")
        _validate_fleet(paths, trust, as_json=as_json)
        return
    if len(paths) != 1:
        raise typer.BadParameter("one release at a time; --fleet takes several validation files")
    require_extra("edge", "a light release")
    from fedglm.core.files import write_atomically
    from fedglm.inference.validation.validate import validate_release
    from fedglm.inference.validation.validation import sign_validation
    from fedglm.privacy.keys.signing import SigningKey

    own = None if sign_with is None else SigningKey.load(sign_with)  # a wrong passphrase is told before the work
    validation = validate_release(paths[0], trust=trust, threads=threads)
    if own is not None:
        write_atomically(out, sign_validation(validation, own).decode())
    if as_json:
        typer.echo(json.dumps({"passed": validation.passed} | validation.model_dump(mode="json"), indent=1))
    else:
        print_validation(validation)
        typer.echo(f"signed by {own.public.fingerprint()}: {out}" if own else "not signed: --sign-with writes a file")
    if not validation.passed:
        raise typer.Exit(FAILED_CODE)


def _make_trust(key: list[str] | None, *, unverified: bool, whose: str) -> "Trust":
    from fedglm.inference.release.trust import Trust

    if bool(key) == unverified:
        raise typer.BadParameter(f"give the keys {whose} with --key, or --unverified to trust anybody")
    return Trust.in_keys(map(parse_key, key)) if key else Trust.unverified()


def _validate_fleet(paths: Sequence[Path], trust: "Trust", *, as_json: bool) -> None:
    """Verify validation files, print them, and exit with 1 where a check fails or a file is not what a device signed.

    Raises:
        InferenceError: A file cannot be read.
    """
    from fedglm.core.untrusted_files import read_regular
    from fedglm.inference.errors import InferenceError
    from fedglm.inference.validation.validation import MAX_BYTES, read_validation

    read: list[tuple[Path, SignedValidation | str]] = []
    for path in paths:
        try:
            blob = read_regular(path, MAX_BYTES)
        except OSError as exc:
            raise InferenceError(f"{path} cannot be read: {exc.strerror}") from exc
        try:
            read.append((path, read_validation(blob, trust=trust)))
        except InferenceError as exc:
            read.append((path, str(exc)))
    if as_json:
        typer.echo(json.dumps([_describe(path, each) for path, each in read], indent=1))
    else:
        print_fleet(read, verified=trust.verifies)
    if any(isinstance(each, str) or not each.validation.passed for _, each in read):
        raise typer.Exit(FAILED_CODE)


def _describe(path: Path, read: "SignedValidation | str") -> dict[str, object]:
    if isinstance(read, str):
        return {"file": str(path), "error": read}
    fields = {"device": read.device_key.hex, "verified": read.verified, "passed": read.validation.passed}
    return {"file": str(path)} | fields | {"validation": read.validation.model_dump(mode="json")}
