"""Changes that a user makes to a scenario: options by name, and settings by dotted key."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack

from fedglm.scenarios.scenario import Scenario, ScenarioError, scenario_text


class ScenarioOptions(TypedDict, total=False):
    """Options with names of their own, in Python as on the command line; None keeps the scenario's value."""

    data: str | os.PathLike[str] | None
    text_field: str | None
    label_field: str | None
    unit_field: str | None
    site_field: str | None
    nodes: int | None
    rounds: int | None
    codec: str | None
    density: float | None
    epsilon: float | None
    no_dp: bool
    seed: int | None


_KEYS: Final = {
    "data": "data.source",
    "text_field": "data.text_field",
    "label_field": "data.label_field",
    "unit_field": "data.unit_field",
    "site_field": "data.site_field",
    "nodes": "federation.nodes",
    "rounds": "federation.rounds",
    "codec": "update.codec",
    "density": "update.density",
    "epsilon": "privacy.epsilon",
    "seed": "federation.seed",
}
"""Setting that each option changes, except `no_dp`, which removes epsilon."""

_PATHS: Final = {
    "data": ("source", "public_reference"),
    "model": ("path",),
    "federation": ("reference",),
    "evaluation": ("data",),
}
"""Settings that are paths, by section."""
_OR_NAMES: Final = {"source", "reference", "data"}
"""Those of `_PATHS` that may also be a name, which contains no dot and no slash."""


def load_scenario(
    scenario: str | os.PathLike[str] | Scenario = "hospital",
    *,
    settings: Mapping[str, Any] | None = None,
    **options: Unpack[ScenarioOptions],
) -> Scenario:
    """Read a scenario and change it; its paths become absolute, so that it means the same from everywhere.

    A path in a TOML file counts from the file's folder, a path in `data` or `settings` from the current folder.

    Args:
        scenario: A built-in name (`hospital`, `iot`, `text`), the path of a TOML file, or a scenario.
        settings: Any setting by dotted key, as in `{"training.local_steps": 10}`; None takes one away. They win over
            `options`.
        **options: `data` (JSONL or CSV, also .gz), `text_field`, `label_field`, `unit_field`, `site_field` (fields of
            the data), `nodes`, `rounds`, `codec`, `density` (in (0, 1], of a sparse codec), `epsilon` (each site's
            greatest privacy loss over the whole run), `no_dp` (train without noise), `seed`.

    Raises:
        ScenarioError: There is no such scenario, or a key, a value or a combination is wrong; near names are listed.
    """
    if isinstance(scenario, Scenario):
        text, home, origin = scenario.to_toml(), Path.cwd(), f"scenario {scenario.name}"
    else:
        name = os.fspath(scenario)
        text, home, origin = scenario_text(name), Path(name).absolute().parent, f"scenario {name}"
    changes = option_changes(options)
    changes |= {key: _make_paths_absolute(key, value, Path.cwd()) for key, value in (settings or {}).items()}
    changed = Scenario.from_toml(text, changes, origin=origin)
    for section, keys in _PATHS.items():
        part = getattr(changed, section)
        paths = {key: _make_paths_absolute(f"{section}.{key}", getattr(part, key), home) for key in keys}
        changed = changed.model_copy(update={section: part.model_copy(update=paths)})
    if options.get("density") is not None and not changed.update.is_sparse:
        raise ScenarioError(f"{changed.update.codec} sends every coordinate: leave --density out")
    return changed


def option_changes(options: ScenarioOptions) -> dict[str, Any]:
    """Return the settings that options change, by dotted key; None removes a setting.

    Raises:
        ScenarioError: There is no such option, or `epsilon` and `no_dp` are both given.
    """
    for name in options:
        if name not in ScenarioOptions.__annotations__:
            near = difflib.get_close_matches(name, ScenarioOptions.__annotations__) or ScenarioOptions.__annotations__
            raise ScenarioError(f"there is no option {name}: did you mean {', '.join(near)}? (or settings=)")
    values: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    changes = {key: values[name] for name, key in _KEYS.items() if name in values}
    if values.get("no_dp"):
        if "epsilon" in values:
            raise ScenarioError("--epsilon and --no-dp exclude each other")
        changes["privacy.epsilon"] = None
    if "data" in values:
        changes["data.source"] = _absolute(values["data"], Path.cwd())  # a path, whatever its name
    if "site_field" in values:  # one node a site, whatever the scenario says of its own data
        changes = {"federation.nodes": None, "data.split": "site"} | changes
    return changes


def _make_paths_absolute(dotted: str, value: Any, home: Path) -> Any:
    """Return the value of a setting, made absolute if it is a path; relative paths start from `home`."""
    section, _, key = dotted.partition(".")
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    is_path = key in _PATHS.get(section, ()) and isinstance(value, str) and value
    if not is_path or (key in _OR_NAMES and not any(mark in value for mark in "./\\")):
        return value
    return _absolute(value, home)


def _absolute(path: str | os.PathLike[str], home: Path) -> str:
    return str(home / os.path.expanduser(path))  # Path.expanduser raises where ~name is nobody's
