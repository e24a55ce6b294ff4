"""A comparison's page in words and pictures; `comparison_results` has its tables."""

from collections.abc import Mapping
from typing import Any

from fedglm.reports.comparison.formats import in_line, name_of, noise_line
from fedglm.reports.comparison.pictures import (
    bytes_to_target,
    greatest_drawn,
    losses_by_bytes,
    losses_by_round,
    losses_by_upload,
)
from fedglm.reports.comparison.results import best_of
from fedglm.reports.comparison.to_target import Comparison, SeedRun
from fedglm.reports.formats import counted, fewer, significant
from fedglm.reports.html.markup import Html, element, section
from fedglm.reports.run.sections import figure, nodes_of

# What a codec is, and what may go with it: not worth a warning where it differs.
_THE_CODECS_OWN = (
    "update.",
    "downlink.",
    "privacy.epsilon",
    "federation.rounds",
    "federation.nodes",
    "federation.seed",
    "name",
)


def headline(comparison: Comparison) -> str:
    """The comparison in one sentence."""
    first, best = name_of(comparison, comparison.standings[0]), best_of(comparison)
    if comparison.target is None:
        return f"{first} ended without a finite loss: there is nothing to compare with"
    if best is None:
        under = " under every seed" if len(comparison.seeds) > 1 else ""
        return f"None reaches the final loss of {first} with fewer bytes{under}"
    up, total = best.ratio("up"), best.ratio("total")
    saved = f"{fewer(total.mean if total else None, rough=True)} bytes"
    also = f" ({fewer(up.mean, rough=True)} up)" if up else ""
    return f"{name_of(comparison, best)} reaches the final loss of {first} with {saved}{also}"


def summary_line(comparison: Comparison) -> str:
    """The target and what was run."""
    first, name = comparison.standings[0], name_of(comparison, comparison.standings[0])
    nodes, seeds = nodes_of(first.run), comparison.seeds
    lengths = sorted({len(standing.run.rounds) for standing in comparison.standings})
    rounds = counted(lengths[0], "round") if len(lengths) == 1 else f"{lengths[0]:,} to {lengths[-1]:,} rounds"
    shape = f"{first.run.scenario}, {rounds}" + (f", {counted(nodes, 'site')}" if nodes else "")
    said = f"The same federation ({shape}) under {counted(len(comparison.standings), 'codec')}"
    said += f" and {counted(len(seeds), 'seed')} ({', '.join(seeds)})." if len(seeds) > 1 else "."
    target = comparison.target
    if target is None:
        return said
    allowance = f" times {comparison.tolerance:g}" if comparison.tolerance != 1 else ""
    if len(seeds) > 1:
        mean = f"{in_line(target, significant)} on average"
        return f"{said} Under each seed the target is the loss at which {name} ended{allowance}: {mean}."
    ended = significant(first.run.final.loss)
    return f"{said} The target is a loss of {significant(target.mean)}: where {name} ended ({ended}){allowance}."


def unlike(comparison: Comparison) -> list[str]:
    """What differs between the runs of a seed besides codec, downlink and rounds, in plain words."""
    found: dict[str, list[str]] = {}
    for place in range(len(comparison.seeds)):
        facts = [_facts(standing.trials[place]) for standing in comparison.standings]
        for key in dict.fromkeys(key for each in facts for key in each):
            values = [each.get(key, "not set") for each in facts]
            if len(set(values)) > 1:
                found[key] = list(dict.fromkeys([*found.get(key, []), *values]))
    return [f"{key} ({', '.join(values)})" for key, values in found.items()]


def _facts(trial: SeedRun) -> dict[str, str]:
    summary = {key: str(trial.run.summary.get(key)) for key in ("scenario", "seed", "nodes", "parameters", "precision")}
    settings = {key: value for key, value in _flat(trial.run.settings) if not key.startswith(_THE_CODECS_OWN)}
    return summary | settings


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        pairs += _flat(value, f"{dotted}.") if isinstance(value, dict) else [(dotted, str(value))]
    return pairs


def warning(comparison: Comparison) -> Html:
    """Said where the runs differ in more than the codec."""
    found = unlike(comparison)
    if not found:
        return Html()
    text = f"These runs differ in more than the codec: {'; '.join(found)}. Their bytes do not compare like with like."
    return element("p", text, class_="notice warning")


def noise(comparison: Comparison) -> Html:
    """Said where runs are noised: chance is then in every figure."""
    line = noise_line(comparison)
    return element("p", line, class_="notice warning") if line else Html()


def losses(comparison: Comparison) -> Html:
    """The losses of all codecs by bytes and by round, and the bytes until the target."""
    seeds = len(comparison.seeds)
    over = f"Lines are means over {seeds} seeds; bands reach from the least loss to the greatest." if seeds > 1 else ""
    if (top := greatest_drawn(comparison)) is not None:
        over = f"{over} Losses above {significant(top, 3)} are cut off.".strip()
    dots = "Dots: bytes up. Rings: both ways."
    pictures = element(
        "div",
        figure("Loss by bytes uploaded", losses_by_upload(comparison), over),
        figure("Loss by bytes sent, both ways", losses_by_bytes(comparison), over),
        figure("Loss by round", losses_by_round(comparison), over),
        figure("Bytes until the target", bytes_to_target(comparison), dots),
        class_="pictures",
    )
    return section("losses", "Loss by bytes and by round", pictures)
