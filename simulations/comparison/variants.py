"""The option `--codecs`: codecs, each with settings of its own.

topk-sign                                       with the scenario's settings
topk-sign@0.01                                  at a density
topk-sign@density=0.01+feedback=false           keys of `[update]`
lowrank@rank=4+rounds=150+downlink.codec=int8   `rounds` is short for federation.rounds; any dotted key is allowed
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fedglm.compression.codec import codec_names, codec_options
from fedglm.compression.settings import UpdateSettings
from fedglm.core.suggestions import did_you_mean
from fedglm.scenarios.scenario import ScenarioError, parse_setting

_SHORT = {"rounds": "federation.rounds"}
_MAX_LABEL = 100  # of a label, which names a folder
_REFUSED = {
    "update.codec": "the codec stands before the @",
    "federation.seed": "all codecs run under the same seeds, which --seeds gives",
}


@dataclass(frozen=True)
class Variant:
    """A codec with settings of its own.

    Attributes:
        label: The codec and those settings, in characters that any file system allows.
        settings: Settings as `--set` takes them (`section.key=value`), the codec included.
    """

    label: str
    settings: tuple[str, ...]


def parse_variants(text: str, density: float | None = None) -> list[Variant]:
    """Parse a comma-separated list of variants; a comma inside brackets belongs to a value.

    Args:
        text: `NAME`, `NAME@DENSITY` or `NAME@key=value+key=value`, as the module's docstring shows them.
        density: Density of the sparse codecs that give none.

    Raises:
        CodecError: A codec is unknown.
        ScenarioError: A key is unknown, is given twice or is not an option of the codec; near names are listed.
    """
    return [_parse_variant(part.strip(), density) for part in re.split(r",(?![^\[]*\])", text)]


def _parse_variant(text: str, density: float | None) -> Variant:
    name, at, rest = text.partition("@")
    options = codec_options(name)
    own: dict[str, str] = {}
    for key, value in _split_pairs(text, rest) if at else ():
        if key in own:
            raise ScenarioError(f"{text}: {key} is given twice")
        _check_setting(text, name, key, value)
        own[key] = value
    settings = {"update.codec": name, **own}
    if density is not None and "density" in options:
        settings.setdefault("update.density", str(density))
    return Variant(_make_label(name, own), tuple(f"{key}={value}" for key, value in settings.items()))


def _split_pairs(text: str, rest: str) -> Iterator[tuple[str, str]]:
    """Yield dotted keys and values; a value without a key is the density."""
    for index, part in enumerate(re.split(r"\+(?=[A-Za-z_][\w.]*=)", rest)):  # 1e+3 is one value
        key, equals, value = part.partition("=")
        if not equals and index == 0:
            yield "update.density", part
        elif not value:
            raise ScenarioError(f"{text}: give {key or 'a key'} a value, as in topk-sign@density=0.01+feedback=false")
        else:
            yield _to_dotted_key(text, key.strip()), value


def _to_dotted_key(text: str, key: str) -> str:
    if "." in key:
        return key
    if key in UpdateSettings.model_fields:
        return f"update.{key}"
    if key in _SHORT:
        return _SHORT[key]
    known = [*UpdateSettings.model_fields, *_SHORT]
    raise ScenarioError(f"{text}: unknown key {key}: {did_you_mean(key, known)} (or section.key)")


def _check_setting(text: str, name: str, key: str, value: str) -> None:
    if key in _REFUSED:
        raise ScenarioError(f"{text}: leave {key} out: {_REFUSED[key]}")
    section, _, option = key.partition(".")
    elsewhere = {other for codec in codec_names() for other in codec_options(codec)}
    if section == "update" and option in elsewhere - set(codec_options(name)):
        given = f"@{value}" if f"@{value}" in text else f"{option}={value}"
        raise ScenarioError(f"{name} has no {option}: leave {given} out")
    if key == "update.density" and type(_parse_value(key, value)) not in (int, float):
        raise ScenarioError(f"{text!r}: a density is a number, as in topk-sign@0.01")


def _parse_value(key: str, value: str) -> Any:
    return parse_setting(f"{key}={value}")[1]


def _make_label(name: str, own: dict[str, str]) -> str:
    """Return the variant as it is typed, shortened."""
    shorten = {long: short for short, long in _SHORT.items()}
    parts: list[str] = []
    for key, value in own.items():
        written = _format_value(_parse_value(key, value))
        if key == "update.density":
            parts.insert(0, written)
        else:
            parts.append(f"{shorten.get(key, key.removeprefix('update.'))}={written}")
    label = re.sub(r"[^A-Za-z0-9._=+@-]+", "-", "@".join(filter(None, (name, "+".join(parts)))))
    if len(label) <= _MAX_LABEL:
        return label
    digest = hashlib.sha256(label.encode()).hexdigest()[:8]
    return f"{label[: _MAX_LABEL - 9]}-{digest}"


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str, separators=(",", ":"))
