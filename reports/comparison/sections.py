"""Sections of a comparison's page: headline, summary, warnings and pictures; `results.py` has the tables."""

from collections.abc import Mapping
from typing import Any

from fedglm.reports.comparison.formats import choose_name, describe_noise, format_in_line
from fedglm.reports.comparison.pictures import (
    draw_bytes_to_target,
    draw_losses_by_bytes,
    draw_losses_by_round,
    draw_losses_by_upload,
    max_drawn_loss,
)
from fedglm.reports.comparison.results import select_best_codec
from fedglm.reports.comparison.to_target import Comparison, SeedRun
from fedglm.reports.formats import describe_saving, format_number, pluralize
from fedglm.reports.html.markup import Html, element, section
from fedglm.reports.run.headline import count_nodes
from fedglm.reports.run.sections import figure

# Settings that may differ between codecs without a warning.
_CODEC_SETTINGS = (
    "update.",
    "downlink.",
    "privacy.epsilon",
    "federation.rounds",
    "federation.nodes",
    "federation.seed",
    "name",
)


def headline(comparison: Comparison) -> str:
    """Write the result of the comparison in one sentence."""
    first, best = choose_name(comparison, comparison.codecs[0]), select_best_codec(comparison)
    if comparison.target is None:
        return f"{first} ended without a finite loss: there is nothing to compare with"
    if best is None:
        under = " under every seed" if len(comparison.seeds) > 1 else ""
        return f"None reaches the final loss of {first} with fewer bytes{under}"
    up, total = best.ratio("up"), best.ratio("total")
    saved = f"{describe_saving(total.mean if total else None, rough=True)} bytes"
    also = f" ({describe_saving(up.mean, rough=True)} up)" if up else ""
    return f"{choose_name(comparison, best)} reaches the final loss of {first} with {saved}{also}"


def summary(comparison: Comparison) -> str:
    """Write what was run and the target, in sentences."""
    first, name = comparison.codecs[0], choose_name(comparison, comparison.codecs[0])
    nodes, seeds = count_nodes(first.run), comparison.seeds
    lengths = sorted({len(codec.run.rounds) for codec in comparison.codecs})
    rounds = pluralize(lengths[0], "round") if len(lengths) == 1 else f"{lengths[0]:,} to {lengths[-1]:,} rounds"
    shape = f"{first.run.scenario}, {rounds}" + (f", {pluralize(nodes, 'site')}" if nodes else "")
    sentences = f"The same federation ({shape}) under {pluralize(len(comparison.codecs), 'codec')}"
    sentences += f" and {pluralize(len(seeds), 'seed')} ({', '.join(seeds)})." if len(seeds) > 1 else "."
    target = comparison.target
    if target is None:
        return sentences
    allowance = f" times {comparison.tolerance:g}" if comparison.tolerance != 1 else ""
    if len(seeds) > 1:
        mean = f"{format_in_line(target, format_number)} on average"
        return f"{sentences} Under each seed the target is the loss at which {name} ended{allowance}: {mean}."
    ended = format_number(first.run.final.loss)
    return f"{sentences} The target is a loss of {format_number(target.mean)}: where {name} ended ({ended}){allowance}."


def find_differences(comparison: Comparison) -> list[str]:
    """List what differs between the runs of a seed besides codec, downlink and rounds, as `key (values)`."""
    differences: dict[str, list[str]] = {}
    for place in range(len(comparison.seeds)):
        facts = [_list_facts(codec.seed_runs[place]) for codec in comparison.codecs]
        for key in dict.fromkeys(key for each in facts for key in each):
            values = [each.get(key, "not set") for each in facts]
            if len(set(values)) > 1:
                differences[key] = list(dict.fromkeys([*differences.get(key, []), *values]))
    return [f"{key} ({', '.join(values)})" for key, values in differences.items()]


def _list_facts(seed_run: SeedRun) -> dict[str, str]:
    keys = ("scenario", "seed", "nodes", "parameters", "precision")
    summary = {key: str(seed_run.run.summary.get(key)) for key in keys}
    settings = {key: value for key, value in _flatten(seed_run.run.settings) if not key.startswith(_CODEC_SETTINGS)}
    return summary | settings


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        pairs += _flatten(value, f"{dotted}.") if isinstance(value, dict) else [(dotted, str(value))]
    return pairs


def render_warning(comparison: Comparison) -> Html:
    """Render a warning where the runs differ in more than the codec."""
    differences = find_differences(comparison)
    if not differences:
        return Html()
    text = f"These runs differ in more than the codec: {'; '.join(differences)}."
    return element("p", f"{text} Their bytes do not compare like with like.", class_="notice warning")


def render_noise(comparison: Comparison) -> Html:
    """Render a warning where runs are noised, since every figure is then random."""
    line = describe_noise(comparison)
    return element("p", line, class_="notice warning") if line else Html()


def render_losses(comparison: Comparison) -> Html:
    """Render the losses of all codecs by bytes and by round, and the bytes until the target."""
    seeds = len(comparison.seeds)
    note = f"Lines are means over {seeds} seeds; bands reach from the least loss to the greatest." if seeds > 1 else ""
    if (top := max_drawn_loss(comparison)) is not None:
        note = f"{note} Losses above {format_number(top, 3)} are cut off.".strip()
    legend = "Dots: bytes up. Rings: both ways."
    pictures = element(
        "div",
        figure("Loss by bytes uploaded", draw_losses_by_upload(comparison), note),
        figure("Loss by bytes sent, both ways", draw_losses_by_bytes(comparison), note),
        figure("Loss by round", draw_losses_by_round(comparison), note),
        figure("Bytes until the target", draw_bytes_to_target(comparison), legend),
        class_="pictures",
    )
    return section("losses", "Loss by bytes and by round", pictures)
