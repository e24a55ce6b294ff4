"""The model card of a light release: README.md with the metadata of Hugging Face (YAML front matter).

Short, for each of its bytes counts in the release's size; the manifest beside it has the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedglm.core.untrusted_text import clean_text
from fedglm.inference.release.manifest import Facts, Measure

_SIZE_WIDTH = 11
_RATIO_WIDTH = 7
"""Widths of the numbers that depend on the card's own length, so that its length does not depend on them."""


def write_card(
    facts: Facts, config: Mapping[str, Any], *, parameters: int, reference_parameters: int, size: int
) -> bytes:
    """Write the card.

    Args:
        facts: What is known of the model.
        config: Its configuration.
        parameters: Number of its parameters.
        reference_parameters: Number of parameters of the model that was made light.
        size: Bytes of the whole release, this card included.
    """
    reference = 4 * reference_parameters
    lines = [
        *_write_metadata(facts, config),
        f"# {_plain(facts.name)}",
        f"{parameters:,} parameters in{size:>{_SIZE_WIDTH},} bytes, all files counted: "
        f"{reference / size:>{_RATIO_WIDTH}.2f} times less than the {reference:,} of {reference_parameters:,} "
        "parameters in FP32 (a tied output layer counted once).",
        "",
        "    pip install 'fedglm[edge]'",
        "    fedglm generate . TEXT" if _generates(config) else "    fedglm predict . FILE",
        "",
        *_write_measures(facts.measures),
        _write_list("Not measured", facts.not_measured or ("what is not in the table",)),
        *([_write_list("Limits", facts.limits)] if facts.limits else []),
        _write_privacy(facts),
        "Settings, run and hashes: manifest.json, which the signature covers.",
    ]
    return ("\n".join(lines) + "\n").encode()


def _write_metadata(facts: Facts, config: Mapping[str, Any]) -> list[str]:
    """Write the YAML; JSON strings are YAML's too."""
    task = "text-generation" if _generates(config) else "text-classification"
    license_line = [f"license: {json.dumps(facts.license)}"] if facts.license else []
    return ["---", *license_line, "library_name: fedglm", f"pipeline_tag: {task}", "tags: [glm, quantized]", "---"]


def _generates(config: Mapping[str, Any]) -> bool:
    return not any("Classification" in str(name) for name in config.get("architectures") or ())


def _write_measures(measures: tuple[Measure, ...]) -> list[str]:
    if not measures:
        return []
    rows = [
        f"|{_plain(each.name)}|{each.value:.6g}|{_number(each.reference)}|{_number(each.control)}|{each.n}|{each.seed}|"
        for each in measures
    ]
    return ["|measure|light|before|control|n|seed|", "|-|-|-|-|-|-|", *rows, ""]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _write_list(title: str, items: tuple[str, ...]) -> str:
    return f"**{title}:** {'; '.join(map(_plain, items))}.\n"


def _write_privacy(facts: Facts) -> str:
    if facts.privacy is None:
        return "**Privacy:** trained without differential privacy: it can reveal training records.\n"
    privacy = facts.privacy
    return (
        f"**Privacy:** trained with ({privacy.epsilon:.4g}, {privacy.delta:.1e})-differential privacy for each "
        f"{_plain(privacy.unit)}; making it light is post-processing and costs none. This supports evidence for a risk "
        "analysis; it is no determination of any law's.\n"
    )


def _plain(text: str) -> str:
    """Return a text for a cell of a table: one line, without what Markdown or HTML would read as markup."""
    shown = clean_text(text)
    return "".join(f"\\{mark}" if mark in "\\`*_[]<>|#" else mark for mark in shown)
