"""Tables of a comparison's page: bytes and rounds to the baseline's final loss, and the results of whole runs."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

from fedglm.reports.comparison.formats import format_mean_and_range, format_rounds, invert_ratio, split_label
from fedglm.reports.comparison.peers import describe_method
from fedglm.reports.comparison.to_target import CodecResult, Comparison, Direction, SeedRun, Spread
from fedglm.reports.formats import ABSENT, format_bytes, format_factor, format_integer, format_metric, format_number
from fedglm.reports.html.markup import Column, Html, element, folded, join, section, table
from fedglm.run_folder.names import REPORT
from fedglm.run_folder.record import number

_DIRECTIONS: tuple[Direction, ...] = ("up", "down", "total")


def select_best_codec(comparison: Comparison) -> CodecResult | None:
    """Return the codec that reaches the target under every seed with the fewest bytes; None if none saves any."""
    saving = [
        (ratio.mean, codec)
        for codec in comparison.codecs[1:]
        if codec.always_reached and (ratio := codec.ratio("total")) is not None and ratio.mean < 1
    ]
    return min(saving, key=lambda pair: pair[0])[1] if saving else None


def render_target_table(comparison: Comparison) -> Html:
    """Render bytes and rounds to the target, as a table."""
    several = len(comparison.seeds) > 1
    titles = ["Round", "Rounds over the baseline's", "Rounds over its whole run", "Bytes up", "Bytes down", "Both ways"]
    titles += ["Up, times fewer", "Both ways, times fewer"]
    columns = [Column("Codec", figures=False), *([Column("Seeds")] if several else [])]
    columns += map(Column, titles)
    best = select_best_codec(comparison)
    rows = [_build_target_row(codec, codec is best, several) for codec in comparison.codecs]
    grid = table("Until the loss is at most the target", columns, rows)
    note = element("p", _explain_table(comparison), class_="note")
    return section("target", "Bytes and rounds to equal loss", grid, note)


def _build_target_row(codec: CodecResult, best: bool, several: bool) -> tuple[str, ...]:
    name = _name_codec(codec, best)
    reached = (f"{codec.reached} of {len(codec.seed_runs)}",) if several else ()
    if not codec.reached:
        best_loss = codec.over_seeds(lambda each: each.best_loss)
        least = f"best {format_number(best_loss.mean if best_loss else None)}"
        return (name, *reached, _stack_lines("not reached", least), *[ABSENT] * 7)
    cells = (
        _build_cell(codec.rounds_to_target, format_rounds),
        *(
            format_factor(share.mean) if (share := codec.over_seeds(measure)) else ABSENT
            for measure in (lambda each: each.rounds_over_baseline, lambda each: each.rounds_over_baseline_run)
        ),
        *(format_bytes(sent.mean if (sent := codec.bytes_to_target(direction)) else None) for direction in _DIRECTIONS),
        *(
            _build_cell(invert_ratio(codec.ratio(direction)), format_factor)
            for direction in _DIRECTIONS
            if direction != "down"
        ),
    )
    return (name, *reached, *cells)


def _explain_table(comparison: Comparison) -> str:
    """Explain what the table's figures mean, and what they do not show."""
    first = comparison.codecs[0]
    sentences = ["The first round whose loss is at most the target, and every byte sent until that round's end."]
    if len(comparison.seeds) > 1:
        sentences.append(
            "Each run is held against the baseline's of the same seed. Figures are means over the seeds that reached "
            "the target (geometric for the factors), with the least and the greatest below; best "
            "losses are means over all seeds."
        )
    else:
        sentences.append("One run a codec: small differences may be chance, and several seeds (--seeds 7,8,9) tell.")
    if len({len(codec.run.rounds) for codec in comparison.codecs}) > 1:
        sentences.append("Codecs with more rounds do more local work, and their learning rate falls more slowly.")
    downlink = first.run.text("downlink_codec")
    if first.run.text("codec") == "dense-fp32" and downlink and downlink != "dense-fp32":
        sentences.append(f"The baseline is dense on the way up alone: it, too, comes down as {downlink}.")
    return " ".join(sentences)


def _render_label(codec: CodecResult) -> Html:
    first, *others = split_label(codec.label)
    return element("bdi", first, *(part for other in others for part in (element("br"), other)))


def _name_codec(codec: CodecResult, best: bool) -> Html:
    label = _render_label(codec)
    line = ". ".join(filter(None, ("Fewest bytes" if best else None, describe_method(codec.run))))
    title = element("strong", label) if best else label
    return _stack_lines(title, line) if line else title


def _build_cell(spread: Spread | None, form: Callable[[float], str]) -> str:
    mean, span = format_mean_and_range(spread, form)
    return _stack_lines(mean, span) if span else mean


def _stack_lines(first: str, second: str) -> Html:
    return join([first, element("br"), element("span", second, class_="note")])


def render_whole_runs(comparison: Comparison, folder: Path) -> Html:
    """Render the results of each codec after its last round and, with several seeds, those of each run."""
    metric = comparison.codecs[0].run.metric
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
            [_build_whole_row(codec, None if several else folder) for codec in comparison.codecs],
        )
    ]
    if several:
        parts.append(folded("Every run in figures", _render_every_run(comparison, folder)))
    return section("runs", "Each run to its end", *parts)


def _build_whole_row(codec: CodecResult, folder: Path | None) -> tuple[str, ...]:
    run = codec.run
    density = number(run.summary.get("density"))
    label = _render_label(codec)
    return (
        _link_report(label, codec.seed_runs[0], folder) if folder else label,
        ABSENT if density is None else f"{density:g}",
        run.text("downlink_codec") or ABSENT,
        format_integer(len(run.rounds)),
        _build_cell(codec.over_seeds(lambda each: each.run.final.loss), format_number),
        _build_cell(codec.over_seeds(lambda each: each.best_loss), format_number),
        _build_cell(codec.over_seeds(lambda each: each.run.final.metric), partial(format_metric, run.metric)),
        *(
            (f"{sent.mean:,.0f}" if folder else format_bytes(sent.mean))
            if (sent := codec.over_seeds(measure))
            else ABSENT
            for measure in (
                lambda each: each.run.traffic.uplink,
                lambda each: each.run.traffic.downlink,
                lambda each: each.run.traffic.dense_total,
            )
        ),
    )


def _render_every_run(comparison: Comparison, folder: Path) -> Html:
    metric = comparison.codecs[0].run.metric
    titles = ["Seed", "Target", "Final loss", "Best loss", f"Final {metric}", "Round", "Bytes up", "Bytes down"]
    titles += ["Up, times fewer", "Both ways, times fewer"]
    rows = [
        (
            _link_report(_render_label(codec), seed_run, folder),
            seed_run.seed,
            format_number(seed_run.target),
            format_number(seed_run.run.final.loss),
            format_number(seed_run.best_loss),
            format_metric(metric, seed_run.run.final.metric),
            format_integer(seed_run.reached.round) if seed_run.reached else "not reached",
            *(
                format_bytes(seed_run.reached.bytes(direction) if seed_run.reached else None)
                for direction in _DIRECTIONS
                if direction != "total"
            ),
            *(
                format_factor(1 / ratio) if (ratio := seed_run.ratio(direction)) else ABSENT
                for direction in _DIRECTIONS
                if direction != "down"
            ),
        )
        for codec in comparison.codecs
        for seed_run in codec.seed_runs
    ]
    columns = [Column("Codec", figures=False), *map(Column, titles)]
    return table("Every run: its end, and round and bytes to its seed's target", columns, rows)


def _link_report(label: Html, seed_run: SeedRun, folder: Path) -> Html:
    # Link only to reports inside the folder: they move with the page, and a link must not lead anywhere else.
    page = seed_run.folder.resolve() / REPORT
    if not page.is_file() or not page.is_relative_to(folder.resolve()):
        return label
    inside = Path(os.path.relpath(page, folder.resolve())).as_posix()
    return element("a", label, href=quote(inside))
