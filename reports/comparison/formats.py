"""Formats of a comparison: figures over several seeds, and names of codecs."""

import re
from collections.abc import Callable

from fedglm.reports.comparison.to_target import CodecResult, Comparison, Spread
from fedglm.reports.formats import ABSENT
from fedglm.reports.run.guarantees import describe_epsilons, is_noised, read_node_guarantee
from fedglm.run_folder.record import RunRecord

_ONE_LINE = 28  # letters of a label


def format_mean_and_range(spread: Spread | None, form: Callable[[float], str]) -> tuple[str, str]:
    """Format the mean, and the range from minimum to maximum (empty where both read the same, as with one seed)."""
    if spread is None:
        return ABSENT, ""
    first, last = form(spread.low), form(spread.high)
    return form(spread.mean), "" if first == last else f"{first}\N{EN DASH}{last}"


def format_in_line(spread: Spread | None, form: Callable[[float], str]) -> str:
    """Format the mean, followed by the range in brackets."""
    mean, span = format_mean_and_range(spread, form)
    return f"{mean} ({span})" if span else mean


def invert_ratio(ratio: Spread | None) -> Spread | None:
    """Turn a ratio of bytes into the factor by which fewer bytes are sent."""
    return Spread(1 / ratio.mean, 1 / ratio.high, 1 / ratio.low) if ratio else None


def format_rounds(value: float) -> str:
    """Format a mean of integers: 12, 12.5."""
    return f"{value:,.1f}".removesuffix(".0")


def choose_name(comparison: Comparison, codec: CodecResult) -> str:
    """Return the codec's name alone where it is unique, else its label with the settings."""
    names = [other.label.partition("@")[0] for other in comparison.codecs]
    name = codec.label.partition("@")[0]
    return name if name and names.count(name) == 1 else codec.label


def split_label(label: str) -> list[str]:
    """Split a long label into lines, one a setting."""
    return [label] if len(label) <= _ONE_LINE else re.split(r"(?<=.)(?=[@+])", label)


def describe_noise(comparison: Comparison) -> str | None:
    """Describe the noise in the runs and the epsilon that each codec spent; None where no run is noised."""
    spent = {codec.label: _describe_spent(codec) for codec in comparison.codecs}
    if not any(spent.values()):
        return None
    kinds = set(spent.values())
    if len(kinds) == 1:
        sentence = f"Noise in all of these runs: {kinds.pop()}"
    else:
        sentence = "Noise: " + "; ".join(f"{label}, {kind or 'none'}" for label, kind in spent.items())
    return (
        f"{sentence}. It is fresh in each run: differences between codecs below those between two runs of one codec "
        "mean nothing."
    )


def _describe_spent(codec: CodecResult) -> str:
    """Describe the epsilon that a codec's run spent; with several seeds, that of the run that spent most."""
    noised = [seed_run.run for seed_run in codec.seed_runs if is_noised(seed_run.run)]
    return describe_epsilons(max(noised, key=_spent_epsilons)) if noised else ""


def _spent_epsilons(run: RunRecord) -> tuple[float, float]:
    nodes = read_node_guarantee(run)
    return run.epsilon or 0.0, nodes.epsilon if nodes else 0.0
