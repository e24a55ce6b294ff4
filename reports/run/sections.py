"""Sections of a run's page: results, traffic, rejected replies, rounds, and how to repeat the run."""

import math
from statistics import median

from fedglm.reports.formats import (
    ABSENT,
    describe_saving,
    format_bytes,
    format_difference,
    format_duration,
    format_integer,
    format_metric,
    format_number,
    format_percent,
    pluralize,
)
from fedglm.reports.html.markup import Column, Html, description_list, element, folded, isolated, join, section, table
from fedglm.reports.run.guarantees import format_delta, is_noised, read_node_guarantee
from fedglm.reports.run.pictures import (
    draw_learning_by_bytes,
    draw_learning_by_round,
    draw_traffic_by_round,
    format_measure,
)
from fedglm.run_folder.record import RoundRecord, RunRecord, Score, Traffic, count, number


def compute_byte_ratio(coded: int, dense: int) -> float | None:
    """Return coded over dense bytes; None where either is 0."""
    return coded / dense if coded and dense else None


def count_nodes(run: RunRecord) -> int | None:
    """Return the number of nodes of a run; None where its files do not say."""
    return count(run.summary.get("nodes")) or len(run.sites) or None


def count_rounds(run: RunRecord) -> int:
    """Return the number of rounds of a run."""
    return count(run.summary.get("rounds")) or len(run.rounds)


def headline(run: RunRecord) -> str:
    """Write the result of the run in one sentence."""
    value = run.final.metric
    if value is None or not math.isfinite(value):
        reached = "No finite result"
    elif run.metric == "accuracy":
        reached = f"{format_metric(run.metric, value)} accuracy"
    else:
        reached = f"Perplexity {format_metric(run.metric, value, 3)}"
    nodes = count_nodes(run)
    where = f" at {pluralize(nodes, 'site')}" if nodes else ""
    ratio = run.ratio
    sent = (
        f", with {describe_saving(ratio, rough=True)} bytes than dense FP32"
        if ratio is not None and 0 < ratio < 0.95
        else ""
    )
    return f"{reached} after {pluralize(count_rounds(run), 'round')}{where}{sent}"


def summary(run: RunRecord) -> str:
    """Write the result before and after training, the bytes sent, and the baselines' results, in sentences."""
    metric = run.metric
    parts = []
    before = run.initial.metric if run.initial else None
    if before is not None:
        moved = f"from {format_metric(metric, before)} before training to {format_metric(metric, run.final.metric)}"
        parts.append(f"{metric.capitalize()} on held-out data went {moved}.")
    traffic = run.traffic
    if traffic.total and traffic.dense_total:
        dense = format_bytes(traffic.dense_total)
        sent = format_bytes(traffic.total)
        parts.append(f"All training messages together took {sent}; dense float32 would have taken {dense}.")
    compared = [
        f"{words} {format_metric(metric, score.metric)}"
        for words, score in (
            (f"one model on all data pooled{_mark_unnoised(run)} reaches", run.pooled),
            (f"a model trained at one site alone{_mark_unnoised(run)}, on average,", run.alone),
        )
        if score and score.metric is not None
    ]
    if compared:
        sentence = "; ".join(compared)
        parts.append(sentence[0].upper() + sentence[1:] + ".")
    return " ".join(parts)


def render_key_figures(run: RunRecord) -> Html:
    """Render the main figures as tiles."""
    traffic, metric = run.traffic, run.metric
    before = run.initial.metric if run.initial else None
    loss = f"loss {format_number(run.final.loss)}"
    tiles = [
        (metric.capitalize(), format_metric(metric, run.final.metric), loss + _describe_start(before, metric), "lead"),
        ("Bytes, both ways", format_bytes(traffic.total), _compare_dense(traffic.total, traffic.dense_total), "lead"),
        ("Up, sites to server", format_bytes(traffic.up), _compare_dense(traffic.up, traffic.dense_up), None),
        ("Down, server to sites", format_bytes(traffic.down), _compare_dense(traffic.down, traffic.dense_down), None),
        ("Rounds", format_integer(count_rounds(run)), _describe_rejections(run), None),
        ("Sites", format_integer(count_nodes(run)), _describe_parameters(run), None),
        ("Time", format_duration(number(run.summary.get("wall_s"))), _describe_time(run), None),
    ]
    of_nodes = read_node_guarantee(run)
    kind = "lead" if of_nodes and run.epsilon is not None else None  # two tiles: a row of their own
    if run.epsilon is not None:
        note = f"δ = {format_delta(number(run.summary.get('delta')))}; each unit of a site"
        tiles.append(("Privacy loss", f"ε = {format_number(run.epsilon, 3)}", note, kind))
    if of_nodes is not None:
        note = f"δ = {format_delta(of_nodes.delta)}; not against the server"
        tiles.append(("Privacy loss, whole node", f"ε = {format_number(of_nodes.epsilon, 3)}", note, kind))
    return element(
        "dl",
        *(
            element("div", element("dt", term), element("dd", value), element("dd", note, class_="note"), class_=kind)
            for term, value, note, kind in tiles
        ),
        class_="keys",
    )


def _describe_start(before: float | None, metric: str) -> str:
    return "" if before is None else f"; {format_metric(metric, before)} before training"


def _compare_dense(coded: int, dense: int) -> str:
    ratio = compute_byte_ratio(coded, dense)
    return "" if ratio is None else f"{describe_saving(ratio)}; {format_percent(ratio)} of dense, {format_bytes(dense)}"


def _describe_rejections(run: RunRecord) -> str:
    rejected = sum(record.rejected or 0 for record in run.rounds)
    return "no reply rejected" if not rejected else f"{pluralize(rejected, 'reply', 'replies')} rejected"


def _describe_parameters(run: RunRecord) -> str:
    parameters = count(run.summary.get("parameters"))
    return "" if parameters is None else f"{parameters:,} parameters federated"


def _describe_time(run: RunRecord) -> str:
    virtual = number(run.summary.get("virtual_s"))
    on = run.text("engine")
    parts = [f"{format_duration(virtual)} on the simulated devices"] if virtual is not None else []
    return "; ".join([*parts, *([f"wall clock, engine {on}"] if on else ["wall clock"])])


def _mark_unnoised(run: RunRecord) -> str:
    """Return a note for a baseline that it was trained without noise; empty where the run has none either."""
    return ", without noise" if is_noised(run) else ""


def figure(title: str, picture: Html | None, note: str = "") -> Html:
    """Render a picture with its title and, if given, a note; nothing where there is no picture."""
    if picture is None:
        return Html()
    remark = element("p", note, class_="note") if note else ""
    return element("figure", element("figcaption", title), picture, remark)


def render_learning(run: RunRecord) -> Html:
    """Render loss and metric by round and by bytes, and the final results beside the baselines."""
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
            (f"One model on all data pooled{_mark_unnoised(run)}", run.pooled),
            (f"Each site alone (mean){_mark_unnoised(run)}", run.alone),
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
            ("Up", total.up, total.dense_up), ("Down", total.down, total.dense_down),
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
    affected = [record for record in run.rounds if record.rejected or _count_missing_replies(record)]
    if not affected:
        return Html()
    total, silent = sum(r.rejected or 0 for r in affected), sum(_count_missing_replies(r) for r in affected)
    sampled = sum(record.sampled or 0 for record in run.rounds)
    words = [f"{pluralize(total, 'was', 'were')} rejected"] if total else []
    words += [f"{silent:,} never answered"] if silent else []
    sentence = (
        f"Of {pluralize(sampled, 'reply', 'replies')} asked for, {' and '.join(words)}, "
        f"in {pluralize(len(affected), 'round')}. The server left these out of the model."
    )
    columns = [Column("Round"), *map(Column, ("Sites asked", "Accepted", "Rejected", "No reply"))]
    rows = [
        (
            format_integer(r.round),
            format_integer(r.sampled),
            format_integer(r.accepted),
            format_integer(r.rejected),
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
    return max(0, record.sampled - record.accepted - (record.rejected or 0))


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
            + (f"{sent.up:,}", f"{sent.dense_up:,}", f"{sent.down:,}", f"{sent.dense_down:,}", f"{spent.total:,}")
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


def render_provenance(run: RunRecord) -> Html:
    """Render scenario, data, model and versions, and the command that repeats the run."""
    data = run.summary.get("data")
    data = data if isinstance(data, dict) else {}
    classes = data.get("classes")
    class_names = ", ".join(str(c) for c in classes) if isinstance(classes, list) else None
    settings = run.settings.get("model")
    settings = settings if isinstance(settings, dict) else {}
    density = number(run.summary.get("density"))
    versions = run.summary.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    facts: list[tuple[str, str | None]] = [
        ("Scenario", run.scenario),
        ("Data", _as_text(data.get("source"))),
        ("Task", _as_text(data.get("task"))),
        ("Classes", class_names),
        ("Model", _as_text(settings.get("preset") or settings.get("path"))),
        ("Adapter", _as_text(settings.get("adapter"))),
        ("Parameters federated", format_integer(count(run.summary.get("parameters")))),
        ("Update", run.text("coding") or run.text("codec")),
        ("Downlink", run.text("downlink_coding") or run.text("downlink_codec")),
        ("Density", None if density is None else f"{density:g}"),
        ("Seed", run.text("seed")),
        ("Engine", run.text("engine")),
        ("Precision", run.text("precision")),
        ("Wall time", None if (wall := number(run.summary.get("wall_s"))) is None else f"{wall:.4g} s"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or None),
    ]
    rows = [(term, isolated(value)) for term, value in facts if value is not None and value != ABSENT]
    if digest := run.text("model_sha256"):
        rows.append(("Model SHA-256", element("code", digest)))
    reproducibility = (
        "The privacy noise is drawn afresh each time, so the figures come out close but not the same."
        if is_noised(run)
        else "With the versions above, on the same kind of machine, it gives a model of the same SHA-256."
    )
    instructions = join([
        element("h3", "To repeat it"),
        element("p", "In the folder that holds this page and its scenario.toml:"),
        element("pre", element("code", "fedglm simulate scenario.toml --out again"), tabindex=0),
        element("p", reproducibility, class_="note"),
    ])  # fmt: skip
    scenario = (
        folded(
            "scenario.toml, every default written out", element("pre", element("code", run.scenario_toml), tabindex=0)
        )
        if run.scenario_toml
        else ""
    )
    return section("provenance", "What was run", description_list(rows, class_="facts"), instructions, scenario)


def _as_text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)
