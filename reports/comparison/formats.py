"""How a comparison writes a figure over several seeds, and a codec's name."""

import re
from collections.abc import Callable

from fedglm.reports.comparison.to_target import Comparison, Spread, Standing
from fedglm.reports.formats import ABSENT
from fedglm.reports.run.guarantees import epsilons, is_noised, node_guarantee
from fedglm.run_folder.record import RunRecord

_ONE_LINE = 28  # letters of a label


def mean_and_range(spread: Spread | None, form: Callable[[float], str]) -> tuple[str, str]:
    """The mean, and the range from the least to the greatest (empty where they read the same, as with one seed)."""
    if spread is None:
        return ABSENT, ""
    first, last = form(spread.low), form(spread.high)
    return form(spread.mean), "" if first == last else f"{first}\N{EN DASH}{last}"


def in_line(spread: Spread | None, form: Callable[[float], str]) -> str:
    """The mean with the range in brackets behind it."""
    mean, span = mean_and_range(spread, form)
    return f"{mean} ({span})" if span else mean


def times_fewer(ratio: Spread | None) -> Spread | None:
    """A ratio of bytes as the factor that it saves."""
    return Spread(1 / ratio.mean, 1 / ratio.high, 1 / ratio.low) if ratio else None


def rounds(value: float) -> str:
    """A mean of whole numbers: 12, 12.5."""
    return f"{value:,.1f}".removesuffix(".0")


def name_of(comparison: Comparison, standing: Standing) -> str:
    """The codec's bare name where no other has the same, else the label with its settings."""
    names = [other.label.partition("@")[0] for other in comparison.standings]
    name = standing.label.partition("@")[0]
    return name if name and names.count(name) == 1 else standing.label


def label_lines(label: str) -> list[str]:
    """The label; a long one in lines, a setting each."""
    return [label] if len(label) <= _ONE_LINE else re.split(r"(?<=.)(?=[@+])", label)


def noise_line(comparison: Comparison) -> str | None:
    """What to know where runs are noised, with what each codec spent; None where none is."""
    spent = {standing.label: _spent(standing) for standing in comparison.standings}
    if not any(spent.values()):
        return None
    kinds = set(spent.values())
    if len(kinds) == 1:
        said = f"Noise in all of these runs: {kinds.pop()}"
    else:
        said = "Noise: " + "; ".join(f"{label}, {kind or 'none'}" for label, kind in spent.items())
    return (
        f"{said}. It is fresh in each run: differences between codecs below those between two runs of one codec mean "
        "nothing."
    )


def _spent(standing: Standing) -> str:
    """What a codec's runs spent; the run that spent most where there are several seeds."""
    noised = [trial.run for trial in standing.trials if is_noised(trial.run)]
    return epsilons(max(noised, key=_most)) if noised else ""


def _most(run: RunRecord) -> tuple[float, float]:
    nodes = node_guarantee(run)
    return run.epsilon or 0.0, nodes.epsilon if nodes else 0.0
