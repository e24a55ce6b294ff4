"""Scenarios: all settings of a federation in one TOML file, validated before anything runs."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedglm.autoglm.settings import DataSettings, LocalTrainingSettings, ModelSettings
from fedglm.compression.settings import DownlinkSettings, UpdateSettings
from fedglm.core.errors import FedglmError
from fedglm.core.suggestions import did_you_mean
from fedglm.core.validation_errors import explain
from fedglm.privacy.settings import PrivacySettings
from fedglm.server.settings import ClientPrivacySettings, FederationSettings, ServerOptimizerSettings

_BUILTIN = Path(__file__).parent / "builtin"


class ScenarioError(FedglmError, ValueError):
    """A scenario that cannot be read or run; the message names the key and the remedy."""


class FederationSection(FederationSettings):
    """`[federation]` of a scenario.

    Attributes:
        nodes: Number of nodes; None for one node per site where the data name sites, else 4.
    """

    nodes: int | None = Field(default=None, ge=1, le=100_000)


class TrainingSection(LocalTrainingSettings, ServerOptimizerSettings):
    """`[training]` of a scenario: local training, and the server's optimizer."""


class EvaluationSection(BaseModel):
    """`[evaluation]` of a scenario: a simulation's on the held-out data of all sites, a deployed run's at the server.

    Attributes:
        data: Held-out records of the server of a deployed run, a JSONL or CSV file with the fields of the sites'
            records; `off` measures on none. None takes the held-out part of built-in data, which the server has too,
            and otherwise none. A simulation has all sites' held-out data, and ignores it.
        sequences: Maximum number of held-out sequences evaluated each round, spread evenly over the sites.
        baselines: Models to train for comparison, with the same steps and schedule: each site `alone`, and all data
            `pooled`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str | None = Field(default=None, min_length=1, max_length=4096)
    sequences: int = Field(default=512, ge=1)
    baselines: tuple[Literal["alone", "pooled"], ...] = ()


class Scenario(BaseModel):
    """All settings of a federation; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=80)
    description: str = ""
    federation: FederationSection = FederationSection()
    model: ModelSettings = ModelSettings()
    data: DataSettings
    training: TrainingSection = TrainingSection()
    update: UpdateSettings = UpdateSettings()
    downlink: DownlinkSettings = DownlinkSettings()
    privacy: PrivacySettings = PrivacySettings()
    client_privacy: ClientPrivacySettings = ClientPrivacySettings()
    evaluation: EvaluationSection = EvaluationSection()

    def to_toml(self) -> str:
        """Write every setting as TOML, defaults too; reading it back gives an equal scenario."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def from_toml(cls, text: str, overrides: Mapping[str, Any] | None = None, *, origin: str = "scenario") -> Self:
        """Read a scenario.

        Args:
            text: TOML.
            overrides: Values by dotted key (`federation.rounds`), which take precedence; None removes a key.
            origin: Name of the text in errors.

        Raises:
            ScenarioError: The text is not TOML, or a key or value is wrong; near names are listed.
        """
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as exc:
            raise ScenarioError(f"{origin} is not TOML: {exc}") from exc
        for key, value in (overrides or {}).items():
            _set_value(tree, key, value)
        try:
            return cls.model_validate(tree)
        except ValidationError as exc:
            raise ScenarioError(f"{origin}: {explain(exc, cls)}") from exc


def builtin_names() -> list[str]:
    """List the names of the scenarios that come with fedglm, sorted."""
    return sorted(path.stem for path in _BUILTIN.glob("*.toml"))


def scenario_text(name: str) -> str:
    """Read the TOML of a built-in scenario, or of the file whose path `name` is.

    Raises:
        ScenarioError: There is neither.
    """
    if name in builtin_names():
        return (_BUILTIN / f"{name}.toml").read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix != ".toml":
        raise ScenarioError(f"there is no scenario {name!r}: {did_you_mean(name, builtin_names())} (or a .toml file)")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ScenarioError(f"cannot read the scenario {name}: {exc}") from exc


def parse_setting(text: str) -> tuple[str, Any]:
    """Split `section.key=value`; the value is parsed as TOML, or taken as a string where it is not TOML.

    Raises:
        ScenarioError: There is no `=`, or nothing before it.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ScenarioError(f"--set takes section.key=value, not {text!r}")
    try:
        tree = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        tree = {}
    return key, tree["value"] if tree.keys() == {"value"} else value.strip()


def _set_value(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    table = tree
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ScenarioError(f"{dotted}: {section} is a value, not a section")
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value
