"""Settings of a site: `site.toml`, which its operator writes, and `kit.toml` of the startup kit; read and checked."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fedglm.autoglm.data.bundled import BUNDLES
from fedglm.autoglm.data.row_faults import RowFaults
from fedglm.autoglm.data.sources import check_source
from fedglm.core.errors import FedglmError
from fedglm.core.toml_settings import Settings, read_settings
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.keys.site_identity import checked_site_name

SITE_FILE, KIT_FILE = "site.toml", "kit.toml"

_MAX_CHARACTERS = 65536
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
_SHARE = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


class SiteError(FedglmError, RuntimeError):
    """A site's folder cannot be used as it is; the message names the file and the remedy, and quotes no record."""


def _check_site_name(name: str) -> str:
    try:
        return checked_site_name(name)
    except PrivacyError as exc:
        raise ValueError(str(exc)) from exc


def _check_public_key(text: str) -> str:
    try:
        return PublicKey.from_hex(text).hex
    except PrivacyError as exc:
        raise ValueError(str(exc)) from exc


def _check_address(text: str) -> str:
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError("the server is written as HOST:PORT, without https://")
    return text


def _check_share(text: str) -> str:
    match = _SHARE.fullmatch(text)
    if match is None or not int(match[1]) < int(match[2]):
        raise ValueError("the first of five shares is written 0/5, the last 4/5")
    return text


def _check_source(text: str) -> str:
    check_source(text)
    return text


_Name = Annotated[str, Field(min_length=1, max_length=200)]
_SiteName = Annotated[str, AfterValidator(_check_site_name)]
_Address = Annotated[str, AfterValidator(_check_address)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SiteSection(_Section):
    """`[site]`: how the node runs. Paths are relative to the site's folder.

    Attributes:
        name: Name of the site, as in the startup kit; None takes the kit's.
        server: Address of the server as HOST:PORT; None takes the kit's.
        state: Folder of the node's state, log and pid file.
        custody: Folder of policy, ledger and signing key.
        state_key: File of the key that encrypts the node's state at rest; None leaves it unencrypted.
        device: Device to train on; `auto` takes a GPU where there is one.
        threads: Threads of a training step; with one, a site repeats a simulation to the bit.
        answer_every_s: Reply interval in seconds: a reply leaves a whole multiple of it after its message came, because
            the duration of training depends on the sampled records. A longer interval reveals less and costs more; 0
            reveals all of it.
        metrics_port: Port of this machine on which Prometheus scrapes metrics; None serves none.
    """

    name: _SiteName | None = None
    server: _Address | None = None
    state: _Name = "state"
    custody: _Name = "custody"
    state_key: _Name | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1, le=1024)
    answer_every_s: float = Field(default=1.0, ge=0, le=3600)
    metrics_port: int | None = Field(default=None, ge=1, le=65535)


class DataSection(_Section):
    """`[data]`: the site's records, and which of their fields a run may read: those that are named here, and no other.

    Attributes:
        source: Path of a JSONL or CSV file (also .gz), or the name of built-in data; None in a startup kit that nobody
            has filled in yet.
        text_field: Field of the text.
        label_field: Field of the class.
        class_names: All classes that the label field may hold. A classification run must name the same ones; another is
            refused before a record is read.
        line_breaks: Whether values of a CSV file may hold line breaks, within quotes. Otherwise each line is a row, so
            that no record, whatever its content, can affect another. It has no effect on JSONL.
        unit_field: Field that identifies the unit of a record, such as a patient's number; None makes each record a
            unit.
        feature_fields: Numeric fields that a run may read.
        public_reference: Path of the public file that the bins of a table are computed from, where the run requires it.
        share: "0/5" takes the first of five parts of the source: for trials, where one machine runs several sites.
        site_field: Field by which the source is divided into shares.
    """

    source: Annotated[_Name, AfterValidator(_check_source)] | None = None
    text_field: _Name | None = None
    label_field: _Name | None = None
    class_names: tuple[_Name, ...] = ()
    unit_field: _Name | None = None
    feature_fields: tuple[_Name, ...] = ()
    line_breaks: bool = False
    public_reference: _Name | None = None
    share: Annotated[str, AfterValidator(_check_share)] | None = None
    site_field: _Name | None = None

    @model_validator(mode="after")
    def _check_consistency(self) -> "DataSection":
        given = [name for name in type(self).model_fields if getattr(self, name) and name not in ("source", "share")]
        if self.is_builtin and given:
            raise ValueError(f"{self.source} knows its own fields: leave {given[0]} out")
        if self.site_field and self.share is None:
            raise ValueError("all records of the source are this site's: leave site_field out, or give a share")
        if self.class_names and self.label_field is None:
            raise ValueError("class_names are those of the label_field: name that too")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class_names names a class twice")
        return self

    @property
    def is_builtin(self) -> bool:
        """Whether the records come with fedglm."""
        return self.source in BUNDLES

    @property
    def part(self) -> tuple[int, int] | None:
        """The share as (i, n); None for all records."""
        match = _SHARE.fullmatch(self.share or "")
        return (int(match[1]), int(match[2])) if match else None

    def make_row_faults(self) -> RowFaults:
        """Make a counter of the rows of these records that cannot be used."""
        return RowFaults(line_breaks=self.line_breaks)

    @property
    def unit(self) -> str:
        """Unit of privacy: the unit field, or "record"."""
        return self.unit_field or "record"


class ModelSection(_Section):
    """`[model]`: this site's copy of a pretrained model, for runs that start from one.

    Attributes:
        path: Local Hugging Face folder with safetensors; nothing is ever downloaded.
    """

    path: _Name | None = None


class SiteSettings(_Section):
    """All settings of `site.toml`."""

    site: SiteSection = SiteSection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()


class Kit(_Section):
    """`kit.toml` of a startup kit: the federation and its server, by the server's operator; nothing in it is secret.

    Attributes:
        federation: Name of the federation.
        site: Name of the site.
        server: Address of the server as HOST:PORT.
        signing: Public key (hex) of the server, which verifies run plans.
        authority: SHA-256 (hex) of the certificate in `ca.pem`, DER-encoded.
    """

    federation: _Name
    site: _SiteName
    server: _Address
    signing: Annotated[str, AfterValidator(_check_public_key)]
    authority: str = Field(pattern=r"^[0-9a-f]{64}$")


def read_site_file(folder: Path) -> SiteSettings:
    """Read `site.toml`.

    Raises:
        SiteError: It is missing, no TOML, or a key or value is invalid; the message lists similar names.
    """
    return _read(SiteSettings, folder / SITE_FILE, "copy it from the kit and fill it in")


def read_kit_file(folder: Path) -> Kit:
    """Read `kit.toml`.

    Raises:
        SiteError: As `read_site_file`.
    """
    return _read(Kit, folder / KIT_FILE, "name the folder of the kit that the server's operator handed over")


def resolve_path(folder: Path, text: str) -> Path:
    """Resolve a path in `site.toml`, which is relative to the site's folder and may begin with ~."""
    return folder / os.path.expanduser(text)  # Path.expanduser raises for the home of an unknown user


def split_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT into host and port; an IPv6 address loses its brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _read(model: type[Settings], path: Path, remedy: str) -> Settings:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SiteError(f"{path} is missing: {remedy}") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise SiteError(f"cannot read {path}: {exc}") from exc
    return read_settings(model, text, origin=str(path), max_characters=_MAX_CHARACTERS, error=SiteError)
