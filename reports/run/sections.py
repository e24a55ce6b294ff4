"""Sections of a run's page: learning, bytes, rejected replies and rounds."""

import math
from statistics import median

from fedglm.reports.formats import (
    ABSENT,
    describe_saving,
    format_bytes,
    format_difference,
    format_integer,
    format_metric,
    format_number,
    format_percent,
    pluralize,
)
from fedglm.reports.html.markup import Column, Html, element, folded, section, table
from fedglm.reports.run.guarantees import mark_unnoised
from fedglm.reports.run.headline import compute_byte_ratio
from fedglm.reports.run.pictures import (
    draw_learning_by_bytes,
    draw_learning_by_round,
    draw_traffic_by_round,
    format_measure,
)
from fedglm.run_folder.record import RoundRecord, RunRecord, Score
from fedglm.run_folder.traffic import Traffic


def figure(title: str, picture: Html | None, note: str = "") -> Html:
    """Render a picture with its title and, if given, a note; nothing where there is no picture."""
    if picture is None:
        return Html()
    remark = element("p", note, class_="note") if note else ""
    return element("figure", element("figcaption", title), picture, remark)


def render_learning(run: RunRecord) -> Html:
    """Render loss and metric by round and by bytes, and the final results beside the baselines."""
    if not run.is_measured:
        return Html()
    name = run.metric.capitalize()
    shifted = (
        "The dashed line is this run, each round put where dense float32 of the same messages would have put it. "
        "What a dense run would have learned instead, fedglm compare measures."
    )
    pictures = [
        figure(f"{name} by round", draw_learning_by_round(run, "metric")),
        figure(f"{name} by bytes sent", draw_learning_by_bytes(run, "metric"), shifted),
    ]
    if run.metric == "accuracy":
        pictures += [
            figure("Loss by round", draw_learning_by_round(run, "loss")),
            figure("Loss by bytes sent", draw_learning_by_bytes(run, "loss")),
        ]
    rows = [
        (label, format_measure(run, "loss", score.loss), format_measure(run, "metric", score.metric),
         format_difference(run.metric, run.final.metric, score.metric) if score is not run.final else ABSENT)
        for label, score in (
            ("Federated, this run", run.final), ("Before training", run.initial),
            (f"One model on all data pooled{mark_unnoised(run)}", run.pooled),
            (f"Each site alone (mean){mark_unnoised(run)}", run.alone),
        )
        if score is not None
    ]  # fmt: skip
    sense = "higher accuracy is better" if run.metric == "accuracy" else "lower is better"
    columns = [Column("Model", figures=False), Column("Loss"), Column(name), Column("This run against it")]
    first = _find_first_non_finite_round(run)
    diverged = (
        element(
            "p",
            f"The loss is not finite from round {first} on: the training diverged. A smaller learning rate or "
            "a clipping norm is the usual remedy.",
            class_="notice warning",
        )
        if first is not None
        else ""
    )
    body = element("div", *pictures, class_="pictures")
    results = table(f"Results on held-out data ({sense})", columns, rows)
    return section("learning", "What was learned", diverged, body, results)


def _find_first_non_finite_round(run: RunRecord) -> int | None:
    # JSON has no NaN: where the summary's loss is null, so that null stands for NaN, the nulls of the rounds do, too.
    null_is_nan = "loss" in run.summary and run.summary["loss"] is None
    losses = ((r.round, r.score.loss) for r in run.rounds)
    return next((at for at, loss in losses if (null_is_nan if loss is None else not math.isfinite(loss))), None)


def render_traffic(run: RunRecord) -> Html:
    """Render the bytes sent in each direction, beside those of dense float32."""
    pictures = element(
        "div",
        figure("Up: bytes a round, sites to server", draw_traffic_by_round(run, "up")),
        figure("Down: bytes a round, server to sites", draw_traffic_by_round(run, "down")),
        class_="pictures",
    )
    total, rounds = run.traffic, max(1, len(run.rounds))
    rows = [
        (label, f"{sent:,}", f"{dense:,}", format_percent(ratio := compute_byte_ratio(sent, dense)),
         describe_saving(ratio), format_bytes(sent / rounds))
        for label, sent, dense in (
            ("Up", total.uplink, total.dense_uplink), ("Down", total.downlink, total.dense_downlink),
            ("Both ways", total.total, total.dense_total),
        )
    ]  # fmt: skip
    columns = [
        Column("Way", figures=False),
        *map(Column, ("Bytes sent", "Dense FP32 bytes", "Of dense", "Saving", "A round")),
    ]
    note = (
        "Bytes as they lie in the messages. Dense FP32 is four bytes for each parameter that is federated, for the "
        "same sites in the same rounds. 1 kB is 1,000 bytes; both pictures share one logarithmic scale."
    )
    return section("bytes", "What was sent", pictures, table("Bytes over the whole run", columns, rows),
                   element("p", note, class_="note"))  # fmt: skip


def render_rejections(run: RunRecord) -> Html:
    """Render the rounds in which a reply was rejected or missing; nothing where every reply was accepted."""
    affected = [record for record in run.rounds if record.rejected or record.absent or _count_missing_replies(record)]
    if not affected:
        return Html()
    total, silent = sum(r.rejected or 0 for r in affected), sum(_count_missing_replies(r) for r in affected)
    absent = sum(record.absent for record in affected)
    sampled = sum(record.sampled or 0 for record in run.rounds)
    words = [f"{pluralize(total, 'was', 'were')} rejected"] if total else []
    words += [f"{silent:,} never answered"] if silent else []
    words += [f"{pluralize(absent, 'is', 'are')} missing because sites were absent or revoked"] if absent else []
    sentence = (
        f"Of {pluralize(sampled, 'reply', 'replies')} asked for, {' and '.join(words)}, "
        f"in {pluralize(len(affected), 'round')}. The server left these out of the model."
    )
    titles = ["Round", "Sites asked", "Accepted", "Rejected", *(["Absent"] if absent else []), "No reply"]
    columns = [Column(title) for title in titles]
    rows = [
        (
            format_integer(r.round),
            format_integer(r.sampled),
            format_integer(r.accepted),
            format_integer(r.rejected),
            *([format_integer(r.absent)] if absent else []),
            format_integer(_count_missing_replies(r)),
        )
        for r in affected
    ]
    grid = table("Rounds with replies rejected or missing", columns, rows, class_="narrow")
    shown = grid if len(affected) <= 8 else folded(f"The {len(affected)} rounds", grid)
    return section("rejected", "Rejected replies", element("p", sentence), shown)


def _count_missing_replies(record: RoundRecord) -> int:
    if record.sampled is None or record.accepted is None:
        return 0
    return max(0, record.sampled - record.accepted - (record.rejected or 0) - record.absent)


def render_rounds(run: RunRecord) -> Html:
    """Render all figures of each round, in a table that the reader can open."""
    if not run.rounds:
        return Html()
    private = any(record.epsilon is not None for record in run.rounds)
    timed = any(record.virtual_s is not None for record in run.rounds)
    titles = ["Round", "Loss", run.metric.capitalize(), "Up", "Dense up", "Down", "Dense down", "Sent so far"]
    titles += [
        "Asked",
        "Accepted",
        "Rejected",
        *(["ε"] if private else []),
        "Wall s",
        *(["Virtual s"] if timed else []),
    ]
    rows, spent = [], Traffic()
    for record in run.rounds:
        spent += record.traffic
        sent = record.traffic
        rows.append(
            (
                format_integer(record.round),
                format_number(record.score.loss),
                format_measure(run, "metric", record.score.metric),
            )
            + (
                f"{sent.uplink:,}",
                f"{sent.dense_uplink:,}",
                f"{sent.downlink:,}",
                f"{sent.dense_downlink:,}",
                f"{spent.total:,}",
            )
            + (format_integer(record.sampled), format_integer(record.accepted), format_integer(record.rejected))
            + ((format_number(record.epsilon),) if private else ())
            + (format_number(record.wall_s, 3),)
            + ((format_number(record.virtual_s, 3),) if timed else ())
        )
    grid = table("Each round: results on held-out data, bytes, replies, seconds", [Column(t) for t in titles], rows)
    return section("rounds", "Round by round", folded(f"All {pluralize(len(rows), 'round')} in figures", grid))


def describe_range(run: RunRecord, scores: list[Score]) -> str:
    """Describe the smallest, median and largest metric of several models."""
    values = sorted(v for s in scores if (v := s.metric) is not None and math.isfinite(v))
    if not values:
        return ABSENT
    low, middle, high = (format_metric(run.metric, value) for value in (values[0], median(values), values[-1]))
    return f"{low} to {high}, median {middle}"
