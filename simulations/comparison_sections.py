"""The sections of a comparison's page: who reaches the baseline's final loss, and for how many bytes."""

import os
from pathlib import Path
from urllib.parse import quote

from fedglm.simulations.comparison_pictures import bytes_to_target, losses_by_bytes, losses_by_round
from fedglm.simulations.markup import Column, Html, element, isolated, section, table
from fedglm.simulations.report_sections import figure, nodes_of
from fedglm.simulations.run_record import number
from fedglm.simulations.to_target import Comparison, Standing
from fedglm.simulations.wording import ABSENT, byte_count, counted, fewer, metric_value, significant, whole


def best_of(comparison: Comparison) -> Standing | None:
    """The later run that reaches the target for the fewest bytes, if any does for fewer than the baseline."""
    saving = [s for s in comparison.standings[1:] if s.ratio is not None and s.ratio < 1]
    return min(saving, key=lambda s: s.ratio or 1.0, default=None)


def headline(comparison: Comparison) -> str:
    """The comparison in one sentence."""
    first, best = comparison.standings[0], best_of(comparison)
    if comparison.target is None:
        return f"{first.label} ended without a finite loss: there is nothing to compare with"
    if best is None:
        return f"None reaches the final loss of {first.label} with fewer bytes"
    return f"{best.label} reaches the final loss of {first.label} with {fewer(best.ratio, rough=True)} bytes"


def lede(comparison: Comparison) -> str:
    """The target and what was run."""
    first = comparison.standings[0]
    run = first.run
    nodes = nodes_of(run)
    shape = f"{run.scenario}, {counted(len(run.rounds), 'round')}" + (f", {counted(nodes, 'site')}" if nodes else "")
    said = f"The same federation ({shape}) under {counted(len(comparison.standings), 'codec')}."
    if comparison.target is None:
        return said
    allowance = f" times {comparison.tolerance:g}" if comparison.tolerance != 1 else ""
    return (
        f"{said} The target is a loss of {significant(comparison.target)}: where {first.label} ended "
        f"({significant(run.final.loss)}){allowance}."
    )


def unlike(comparison: Comparison) -> list[str]:
    """What differs between the runs besides the codec, in plain words."""
    found = []
    for key in ("scenario", "seed", "nodes", "parameters", "precision"):
        values = list(dict.fromkeys(str(s.run.summary.get(key)) for s in comparison.standings))
        if len(values) > 1:
            found.append(f"{key} ({', '.join(values)})")
    return found


def warning(comparison: Comparison) -> Html:
    """Said where the runs differ in more than the codec."""
    found = unlike(comparison)
    if not found:
        return Html()
    text = f"These runs differ in more than the codec: {'; '.join(found)}. Their bytes do not compare like with like."
    return element("p", text, class_="notice warning")


def to_target(comparison: Comparison) -> Html:
    """Bytes and rounds to the target, as a picture and a table."""
    picture = figure("Bytes until the target", bytes_to_target(comparison))
    columns = [Column("Codec", figures=False), *map(Column, ("Round", "Up", "Down", "Both ways", "Against the first"))]
    best = best_of(comparison)
    rows = [_row(standing, standing is best, index == 0) for index, standing in enumerate(comparison.standings)]
    grid = table("Rounds and bytes until the loss is at most the target", columns, rows)
    note = (
        "The first round whose loss is at most the target, and every byte sent until that round's end. "
        "One run a codec: small differences may be chance."
    )
    body = element("div", picture, element("div", grid, element("p", note, class_="note")), class_="beside")
    return section("target", "Bytes and rounds to equal loss", body)


def _row(standing: Standing, best: bool, first: bool) -> tuple[str, ...]:
    label = isolated(standing.label)
    name = element("strong", label, " (fewest bytes)") if best else label
    if standing.reached is None:
        return (name, "not reached", ABSENT, ABSENT, ABSENT, ABSENT)
    sent = standing.reached.traffic
    against = "the baseline" if first else fewer(standing.ratio)
    return (name, whole(standing.reached.round), *map(byte_count, (sent.up, sent.down, sent.total)), against)


def losses(comparison: Comparison) -> Html:
    """The losses of all runs, by round and by bytes."""
    pictures = element(
        "div",
        figure("Loss by round", losses_by_round(comparison)),
        figure("Loss by bytes sent", losses_by_bytes(comparison)),
        class_="pictures",
    )
    return section("losses", "Loss by round and by bytes", pictures)


def whole_runs(comparison: Comparison, folder: Path) -> Html:
    """Each run to its end."""
    metric = comparison.standings[0].run.metric
    titles = (
        "Density",
        "Seed",
        "Rounds",
        "Final loss",
        f"Final {metric}",
        "Bytes up",
        "Bytes down",
        "Dense, both ways",
    )
    columns = [Column("Codec", figures=False), *map(Column, titles)]
    rows = []
    for standing in comparison.standings:
        run = standing.run
        density = number(run.summary.get("density"))
        rows.append((
            _linked(standing, folder),
            ABSENT if density is None else f"{density:g}",
            run.text("seed") or ABSENT,
            whole(len(run.rounds)),
            significant(run.final.loss),
            metric_value(run.metric, run.final.metric),
            f"{run.traffic.up:,}",
            f"{run.traffic.down:,}",
            f"{run.traffic.dense_total:,}",
        ))  # fmt: skip
    return section("runs", "Each run to its end", table("Every run, to its last round", columns, rows))


def _linked(standing: Standing, folder: Path) -> Html:
    # A link only to what lies inside the folder: it moves with the page, and leads nowhere else.
    label = isolated(standing.label)
    page = standing.folder.resolve() / "report.html"
    if not page.is_file() or not page.is_relative_to(folder.resolve()):
        return label
    inside = Path(os.path.relpath(page, folder.resolve())).as_posix()
    return element("a", label, href=quote(inside))
