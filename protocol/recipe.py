"""The recipe of a run: how every node builds and trains the model, as the server's signed plan states it.

The text comes from the server. So it is short, every key and bound is checked, and nothing in it can name a file at a
site: where the server's own settings have a path, the recipe has the word "site", and each site's `site.toml` gives the
path there. For the same reason each site names the fields of its own records.
"""

import hashlib
from pathlib import Path
from typing import Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedglm.autoglm.data.bundled import BUNDLES
from fedglm.autoglm.data.sources import check_source, infer_kind
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.settings import DataSettings, LocalTrainingSettings, ModelSettings
from fedglm.compression.settings import DownlinkSettings, UpdateSettings
from fedglm.core.errors import FedglmError
from fedglm.core.toml_settings import read_settings

OWN = "site"
"""Stands in place of a path: each site has its own."""

SERVERS = "server"
"""Stands in place of a path that is the server's alone."""

MAX_CHARACTERS = 20_000
"""Maximum length of a recipe: as much as a run plan holds."""

_MADE_TEXTS = ("auto", "model")
_OWN_FIELDS = ("text_field", "label_field", "unit_field", "site_field")


class RecipeError(FedglmError, ValueError):
    """A recipe cannot be parsed, or does not fit the site; the message quotes settings and no path or record."""


class Recipe(BaseModel):
    """Settings of model and training that all nodes share.

    Attributes:
        seed: Seed of data order and initialisation.
        weighting: Whether a site declares a weight: see `FederationSettings`.
        reference_sha256: SHA-256 (hex) of the public file from which a table's bins are computed, a copy of which each
            site has; None where ranges are declared.
        model: Model to train; a path of "site" is each site's copy of the same folder.
        data: Meaning of the records; a source of "site" is each site's own records.
        training: Local training in a round, on whatever device a node has.
        update: Coding of updates.
        downlink: Coding of published models.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(ge=0, lt=2**31)
    weighting: Literal["uniform", "declared"] = "uniform"
    reference_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    model: ModelSettings
    data: DataSettings
    training: LocalTrainingSettings
    update: UpdateSettings
    downlink: DownlinkSettings

    @model_validator(mode="after")
    def _names_no_file(self) -> Self:
        data, model = self.data, self.model
        if data.source not in BUNDLES and data.source != OWN:
            raise ValueError(f"data.source is {OWN!r} or built-in data ({', '.join(BUNDLES)})")
        if given := [name for name in _OWN_FIELDS if getattr(data, name) is not None]:
            raise ValueError(f"data.{given[0]} is for each site to say")
        if data.source == OWN and data.task == "auto":
            raise ValueError("data.task must be given where the records are the sites' own")
        if data.public_reference not in (None, OWN) or (data.public_reference is None) != (
            self.reference_sha256 is None
        ):
            raise ValueError(f"data.public_reference is {OWN!r}, together with reference_sha256")
        if model.path not in (None, OWN) or (model.path is None and model.preset is None):
            raise ValueError(f"model.path is {OWN!r}, or there is a preset")
        if model.light is not None and model.light.text not in (*_MADE_TEXTS, SERVERS):
            raise ValueError(f"model.light.text is {', '.join(_MADE_TEXTS)}, or {SERVERS!r}")
        if self.training.device != "auto":
            raise ValueError("training.device is for each site to say")
        return self

    @classmethod
    def of(
        cls,
        *,
        seed: int,
        weighting: Literal["uniform", "declared"],
        model: ModelSettings,
        data: DataSettings,
        training: LocalTrainingSettings,
        update: UpdateSettings,
        downlink: DownlinkSettings,
    ) -> Self:
        """Build the recipe from a server's own settings, without its own paths and field names.

        Raises:
            DataError: `data.source` is no built-in and no path, or the public reference cannot be read.
        """
        check_source(data.source)
        if model.path is not None:
            model = model.model_copy(update={"path": OWN, "preset": ModelSettings().preset})
        if model.light is not None and model.light.text not in _MADE_TEXTS:
            model = model.model_copy(update={"light": model.light.model_copy(update={"text": SERVERS})})
        digest = None
        if data.public_reference is not None:
            digest = file_sha256(data.public_reference)
            data = data.model_copy(update={"public_reference": OWN})
        if data.source not in BUNDLES:
            cleared = dict.fromkeys(_OWN_FIELDS)
            data = data.model_copy(update={"source": OWN, "task": infer_kind(data), **cleared})
        plain = training.model_dump(include=set(LocalTrainingSettings.model_fields), exclude={"device"})
        return cls(
            seed=seed,
            weighting=weighting,
            reference_sha256=digest,
            model=model,
            data=data,
            training=LocalTrainingSettings(**plain),
            update=update,
            downlink=downlink,
        )

    def to_toml(self) -> str:
        """Return every setting as TOML, defaults included; `from_toml` gives an equal recipe."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Parse an untrusted recipe.

        Raises:
            RecipeError: The text is too long or not TOML, or a key or value is invalid; near names are listed.
        """
        return read_settings(cls, text, origin="the run's recipe", max_characters=MAX_CHARACTERS, error=RecipeError)


def file_sha256(path: str | Path) -> str:
    """Return the hex SHA-256 of a public file's content.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise DataError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
