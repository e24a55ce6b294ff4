"""The tables of a comparison's page: who reaches the baseline's final loss, and for how many bytes; each run whole."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

from fedglm.reports.comparison.formats import label_lines, mean_and_range, rounds, times_fewer
from fedglm.reports.comparison.peers import stands_for
from fedglm.reports.comparison.to_target import Comparison, SeedRun, Spread, Standing, Way
from fedglm.reports.formats import ABSENT, byte_count, metric_value, significant, times, whole
from fedglm.reports.html.markup import Column, Html, element, folded, join, section, table
from fedglm.run_folder.names import REPORT
from fedglm.run_folder.record import number

_WAYS: tuple[Way, ...] = ("up", "down", "total")


def best_of(comparison: Comparison) -> Standing | None:
    """The later codec that reaches the target under every seed for the fewest bytes both ways, if for fewer at all."""
    saving = [
        (ratio.mean, standing)
        for standing in comparison.standings[1:]
        if standing.always_reached and (ratio := standing.ratio("total")) is not None and ratio.mean < 1
    ]
    return min(saving, key=lambda pair: pair[0])[1] if saving else None


def to_target(comparison: Comparison) -> Html:
    """Bytes and rounds to the target, as a table."""
    several = len(comparison.seeds) > 1
    titles = ["Round", "Rounds over the baseline's", "Rounds over its whole run", "Bytes up", "Bytes down", "Both ways"]
    titles += ["Up, times fewer", "Both ways, times fewer"]
    columns = [Column("Codec", figures=False), *([Column("Seeds")] if several else [])]
    columns += map(Column, titles)
    best = best_of(comparison)
    rows = [_row(standing, standing is best, several) for standing in comparison.standings]
    grid = table("Until the loss is at most the target", columns, rows)
    return section("target", "Bytes and rounds to equal loss", grid, element("p", _reading(comparison), class_="note"))


def _row(standing: Standing, best: bool, several: bool) -> tuple[str, ...]:
    name = _named(standing, best)
    reached = (f"{standing.reached} of {len(standing.trials)}",) if several else ()
    if not standing.reached:
        best_loss = standing.over_seeds(lambda trial: trial.best_loss)
        least = f"best {significant(best_loss.mean if best_loss else None)}"
        return (name, *reached, _two_lines("not reached", least), *[ABSENT] * 7)
    cells = (
        _cell(standing.rounds_to_target, rounds),
        *(
            times(share.mean) if (share := standing.over_seeds(measure)) else ABSENT
            for measure in (lambda trial: trial.of_rounds, lambda trial: trial.of_run)
        ),
        *(byte_count(sent.mean if (sent := standing.bytes_to_target(way)) else None) for way in _WAYS),
        *(_cell(times_fewer(standing.ratio(way)), times) for way in _WAYS if way != "down"),
    )
    return (name, *reached, *cells)


def _reading(comparison: Comparison) -> str:
    """What the table's figures are, and what they are not."""
    first = comparison.standings[0]
    said = ["The first round whose loss is at most the target, and every byte sent until that round's end."]
    if len(comparison.seeds) > 1:
        said.append(
            "Each run is held against the baseline's of the same seed. Figures are means over the seeds that reached "
            "the target (geometric for the factors), with the least and the greatest below; best "
            "losses are means over all seeds."
        )
    else:
        said.append("One run a codec: small differences may be chance, and several seeds (--seeds 7,8,9) tell.")
    if len({len(standing.run.rounds) for standing in comparison.standings}) > 1:
        said.append("Codecs with more rounds do more local work, and their learning rate falls more slowly.")
    downlink = first.run.text("downlink_codec")
    if first.run.text("codec") == "dense-fp32" and downlink and downlink != "dense-fp32":
        said.append(f"The baseline is dense on the way up alone: it, too, comes down as {downlink}.")
    return " ".join(said)


def _label(standing: Standing) -> Html:
    first, *others = label_lines(standing.label)
    return element("bdi", first, *(part for other in others for part in (element("br"), other)))


def _named(standing: Standing, best: bool) -> Html:
    label = _label(standing)
    line = ". ".join(filter(None, ("Fewest bytes" if best else None, stands_for(standing.run))))
    title = element("strong", label) if best else label
    return _two_lines(title, line) if line else title


def _cell(spread: Spread | None, form: Callable[[float], str]) -> str:
    mean, span = mean_and_range(spread, form)
    return _two_lines(mean, span) if span else mean


def _two_lines(first: str, second: str) -> Html:
    return join([first, element("br"), element("span", second, class_="note")])


def whole_runs(comparison: Comparison, folder: Path) -> Html:
    """Each codec to its end, and where there are several seeds, each run."""
    metric = comparison.standings[0].run.metric
    titles = (
        "Density",
        "Comes down as",
        "Rounds",
        "Final loss",
        "Best loss",
        f"Final {metric}",
        "Bytes up",
        "Bytes down",
    )
    columns = [Column("Codec", figures=False), *map(Column, (*titles, "Dense, both ways"))]
    several = len(comparison.seeds) > 1
    parts = [
        table(
            "Every codec, to its last round" + (", mean over the seeds, the least and the greatest" if several else ""),
            columns,
            [_whole(standing, None if several else folder) for standing in comparison.standings],
        )
    ]
    if several:
        parts.append(folded("Every run in figures", _every_run(comparison, folder)))
    return section("runs", "Each run to its end", *parts)


def _whole(standing: Standing, folder: Path | None) -> tuple[str, ...]:
    run = standing.run
    density = number(run.summary.get("density"))
    label = _label(standing)
    return (
        _linked(label, standing.trials[0], folder) if folder else label,
        ABSENT if density is None else f"{density:g}",
        run.text("downlink_codec") or ABSENT,
        whole(len(run.rounds)),
        _cell(standing.over_seeds(lambda trial: trial.run.final.loss), significant),
        _cell(standing.over_seeds(lambda trial: trial.best_loss), significant),
        _cell(standing.over_seeds(lambda trial: trial.run.final.metric), partial(metric_value, run.metric)),
        *(
            (f"{sent.mean:,.0f}" if folder else byte_count(sent.mean))
            if (sent := standing.over_seeds(measure))
            else ABSENT
            for measure in (
                lambda trial: trial.run.traffic.up,
                lambda trial: trial.run.traffic.down,
                lambda trial: trial.run.traffic.dense_total,
            )
        ),
    )


def _every_run(comparison: Comparison, folder: Path) -> Html:
    metric = comparison.standings[0].run.metric
    titles = ["Seed", "Target", "Final loss", "Best loss", f"Final {metric}", "Round", "Bytes up", "Bytes down"]
    titles += ["Up, times fewer", "Both ways, times fewer"]
    rows = [
        (
            _linked(_label(standing), trial, folder),
            trial.seed,
            significant(trial.target),
            significant(trial.run.final.loss),
            significant(trial.best_loss),
            metric_value(metric, trial.run.final.metric),
            whole(trial.reached.round) if trial.reached else "not reached",
            *(byte_count(trial.reached.bytes(way) if trial.reached else None) for way in _WAYS if way != "total"),
            *(times(1 / ratio) if (ratio := trial.ratio(way)) else ABSENT for way in _WAYS if way != "down"),
        )
        for standing in comparison.standings
        for trial in standing.trials
    ]
    columns = [Column("Codec", figures=False), *map(Column, titles)]
    return table("Every run: its end, and round and bytes to its seed's target", columns, rows)


def _linked(label: Html, trial: SeedRun, folder: Path) -> Html:
    # A link only to what lies inside the folder: it moves with the page, and leads nowhere else.
    page = trial.folder.resolve() / REPORT
    if not page.is_file() or not page.is_relative_to(folder.resolve()):
        return label
    inside = Path(os.path.relpath(page, folder.resolve())).as_posix()
    return element("a", label, href=quote(inside))
