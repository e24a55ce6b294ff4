"""Scenarios: all settings of a simulated federation in one TOML file, checked whole before anything runs."""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedglm.autoglm.settings import DataSettings, LocalTrainingSettings, ModelSettings
from fedglm.compression.settings import DownlinkSettings, UpdateSettings
from fedglm.core.errors import FedglmError
from fedglm.core.toml_settings import explain_key
from fedglm.privacy.settings import PrivacySettings
from fedglm.server.settings import ClientPrivacySettings, FederationSettings, ServerOptimizerSettings

_BUILTIN = Path(__file__).parent / "builtin"


class ScenarioError(FedglmError, ValueError):
    """A scenario cannot be read or run; the message names the key and the remedy."""


class FederationSection(FederationSettings):
    """`[federation]` of a scenario.

    Attributes:
        nodes: Number of nodes; None takes one a site where the data name sites, else 4.
    """

    nodes: int | None = Field(default=None, ge=1, le=100_000)


class TrainingSection(LocalTrainingSettings, ServerOptimizerSettings):
    """`[training]` of a scenario: what nodes do in a round, and what the server makes of it."""


class EvaluationSection(BaseModel):
    """`[evaluation]`: how the experimenter, who sees all held-out data, measures.

    Attributes:
        sequences: Most held-out sequences that are measured each round, spread evenly over the sites.
        baselines: What to train for comparison, with the same steps and schedule: each site `alone`, and all data
            `pooled`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequences: int = Field(default=512, ge=1)
    baselines: tuple[Literal["alone", "pooled"], ...] = ()


class Scenario(BaseModel):
    """A simulated federation, whole."""

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
        """Every setting with its value, defaults too; reading it back gives an equal scenario."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def from_toml(cls, text: str, overrides: Mapping[str, Any] | None = None, *, origin: str = "scenario") -> Self:
        """Read a scenario.

        Args:
            text: TOML.
            overrides: Values by dotted key (`federation.rounds`), which win; None takes a key away.
            origin: Name of the text in errors.

        Raises:
            ScenarioError: The text is not TOML, or a key or value is wrong; near names are listed.
        """
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as exc:
            raise ScenarioError(f"{origin} is not TOML: {exc}") from exc
        for key, value in (overrides or {}).items():
            _put(tree, key, value)
        try:
            return cls.model_validate(tree)
        except ValidationError as exc:
            raise ScenarioError(f"{origin}: {'; '.join(_explain(cls, error) for error in exc.errors()[:3])}") from exc


def builtin_names() -> list[str]:
    """Names of the scenarios that come with fedglm."""
    return sorted(path.stem for path in _BUILTIN.glob("*.toml"))


def scenario_text(name: str) -> str:
    """TOML of a built-in scenario, or of the file that `name` is the path of.

    Raises:
        ScenarioError: Neither exists.
    """
    if name in builtin_names():
        return (_BUILTIN / f"{name}.toml").read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix != ".toml":
        near = difflib.get_close_matches(name, builtin_names()) or builtin_names()
        raise ScenarioError(f"there is no scenario {name!r}: did you mean {' or '.join(near)}? (or a .toml file)")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ScenarioError(f"cannot read the scenario {name}: {exc}") from exc


def parse_setting(text: str) -> tuple[str, Any]:
    """Split `section.key=value`; the value is TOML, or a plain string where it is no TOML.

    Raises:
        ScenarioError: There is no `=` or no section.
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


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    place = tree
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ScenarioError(f"{dotted}: {section} is a value, not a section")
    if value is None:
        place.pop(key, None)
    else:
        place[key] = value


def _explain(model: type[BaseModel], error: Any) -> str:
    """One clause for one of pydantic's errors."""
    place = [str(part) for part in error["loc"]]
    where = ".".join(place)
    if (about_key := explain_key(model, place, error["type"])) is not None:
        return about_key
    reason = error["msg"].removeprefix("Value error, ")
    return (
        f"{where} = {error['input']!r}: {reason[:1].lower()}{reason[1:]}" if "input" in error else f"{where}: {reason}"
    )
