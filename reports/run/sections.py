"""The sections of a run's page: what it reached, what it sent, what was rejected, how to repeat it."""

import math
from statistics import median

from fedglm.reports.formats import (
    ABSENT,
    byte_count,
    counted,
    difference,
    duration,
    fewer,
    metric_value,
    share,
    significant,
    whole,
)
from fedglm.reports.html.markup import Column, Html, element, folded, isolated, join, pairs, section, table
from fedglm.reports.run.guarantees import delta_text, is_noised, node_guarantee
from fedglm.reports.run.pictures import (
    learning_by_bytes,
    learning_by_round,
    traffic_by_round,
    written,
)
from fedglm.run_folder.record import RoundRecord, RunRecord, Score, Traffic, count, number


def ratio_of(coded: int, dense: int) -> float | None:
    """Coded over dense bytes, None where nothing was sent or would have been."""
    return coded / dense if coded and dense else None


def nodes_of(run: RunRecord) -> int | None:
    """How many sites took part."""
    return count(run.summary.get("nodes")) or len(run.sites) or None


def rounds_of(run: RunRecord) -> int:
    """How many rounds were run."""
    return count(run.summary.get("rounds")) or len(run.rounds)


def headline(run: RunRecord) -> str:
    """The run in one sentence."""
    value = run.final.metric
    if value is None or not math.isfinite(value):
        reached = "No finite result"
    elif run.metric == "accuracy":
        reached = f"{metric_value(run.metric, value)} accuracy"
    else:
        reached = f"Perplexity {metric_value(run.metric, value, 3)}"
    nodes = nodes_of(run)
    where = f" at {counted(nodes, 'site')}" if nodes else ""
    ratio = run.ratio
    sent = f", with {fewer(ratio, rough=True)} bytes than dense FP32" if ratio is not None and 0 < ratio < 0.95 else ""
    return f"{reached} after {counted(rounds_of(run), 'round')}{where}{sent}"


def summary_line(run: RunRecord) -> str:
    """Where the run started, what it sent, and how it stands beside its baselines."""
    metric = run.metric
    parts = []
    before = run.initial.metric if run.initial else None
    if before is not None:
        moved = f"from {metric_value(metric, before)} before training to {metric_value(metric, run.final.metric)}"
        parts.append(f"{metric.capitalize()} on held-out data went {moved}.")
    traffic = run.traffic
    if traffic.total and traffic.dense_total:
        dense = byte_count(traffic.dense_total)
        sent = byte_count(traffic.total)
        parts.append(f"All training messages together took {sent}; dense float32 would have taken {dense}.")
    compared = [
        f"{words} {metric_value(metric, score.metric)}"
        for words, score in (
            (f"one model on all data pooled{_bare(run)} reaches", run.pooled),
            (f"a model trained at one site alone{_bare(run)}, on average,", run.alone),
        )
        if score and score.metric is not None
    ]
    if compared:
        sentence = "; ".join(compared)
        parts.append(sentence[0].upper() + sentence[1:] + ".")
    return " ".join(parts)


def key_figures(run: RunRecord) -> Html:
    """The figures that decide, as tiles."""
    traffic, metric = run.traffic, run.metric
    before = run.initial.metric if run.initial else None
    loss = f"loss {significant(run.final.loss)}"
    tiles = [
        (metric.capitalize(), metric_value(metric, run.final.metric), loss + _after(before, metric), "lead"),
        ("Bytes, both ways", byte_count(traffic.total), _against(traffic.total, traffic.dense_total), "lead"),
        ("Up, sites to server", byte_count(traffic.up), _against(traffic.up, traffic.dense_up), None),
        ("Down, server to sites", byte_count(traffic.down), _against(traffic.down, traffic.dense_down), None),
        ("Rounds", whole(rounds_of(run)), _rejected_note(run), None),
        ("Sites", whole(nodes_of(run)), _parameters_note(run), None),
        ("Time", duration(number(run.summary.get("wall_s"))), _time_note(run), None),
    ]
    of_nodes = node_guarantee(run)
    kind = "lead" if of_nodes and run.epsilon is not None else None  # two tiles: a row of their own
    if run.epsilon is not None:
        note = f"δ = {delta_text(number(run.summary.get('delta')))}; each unit of a site"
        tiles.append(("Privacy loss", f"ε = {significant(run.epsilon, 3)}", note, kind))
    if of_nodes is not None:
        note = f"δ = {delta_text(of_nodes.delta)}; not against the server"
        tiles.append(("Privacy loss, whole node", f"ε = {significant(of_nodes.epsilon, 3)}", note, kind))
    return element(
        "dl",
        *(
            element("div", element("dt", term), element("dd", value), element("dd", note, class_="note"), class_=kind)
            for term, value, note, kind in tiles
        ),
        class_="keys",
    )


def _after(before: float | None, metric: str) -> str:
    return "" if before is None else f"; {metric_value(metric, before)} before training"


def _against(coded: int, dense: int) -> str:
    ratio = ratio_of(coded, dense)
    return "" if ratio is None else f"{fewer(ratio)}; {share(ratio)} of dense, {byte_count(dense)}"


def _rejected_note(run: RunRecord) -> str:
    rejected = sum(record.rejected or 0 for record in run.rounds)
    return "no reply rejected" if not rejected else f"{counted(rejected, 'reply', 'replies')} rejected"


def _parameters_note(run: RunRecord) -> str:
    parameters = count(run.summary.get("parameters"))
    return "" if parameters is None else f"{parameters:,} parameters federated"


def _time_note(run: RunRecord) -> str:
    virtual = number(run.summary.get("virtual_s"))
    on = run.text("engine")
    parts = [f"{duration(virtual)} on the simulated devices"] if virtual is not None else []
    return "; ".join([*parts, *([f"wall clock, engine {on}"] if on else ["wall clock"])])


def _bare(run: RunRecord) -> str:
    """What to know of a baseline beside a run with noise: it has none."""
    return ", without noise" if is_noised(run) else ""


def figure(title: str, picture: Html | None, note: str = "") -> Html:
    """A picture under its title, with a note where one helps; nothing where there is no picture."""
    if picture is None:
        return Html()
    under = element("p", note, class_="note") if note else ""
    return element("figure", element("figcaption", title), picture, under)


def learning(run: RunRecord) -> Html:
    """What was learned, by round and by bytes, and the same in figures beside the baselines."""
    name = run.metric.capitalize()
    shifted = (
        "The dashed line is this run, each round put where dense float32 of the same messages would have put it. "
        "What a dense run would have learned instead, fedglm compare measures."
    )
    pictures = [
        figure(f"{name} by round", learning_by_round(run, "metric")),
        figure(f"{name} by bytes sent", learning_by_bytes(run, "metric"), shifted),
    ]
    if run.metric == "accuracy":
        pictures += [
            figure("Loss by round", learning_by_round(run, "loss")),
            figure("Loss by bytes sent", learning_by_bytes(run, "loss")),
        ]
    rows = [
        (label, written(run, "loss", score.loss), written(run, "metric", score.metric),
         difference(run.metric, run.final.metric, score.metric) if score is not run.final else ABSENT)
        for label, score in (
            ("Federated, this run", run.final), ("Before training", run.initial),
            (f"One model on all data pooled{_bare(run)}", run.pooled),
            (f"Each site alone (mean){_bare(run)}", run.alone),
        )
        if score is not None
    ]  # fmt: skip
    sense = "higher accuracy is better" if run.metric == "accuracy" else "lower is better"
    columns = [Column("Model", figures=False), Column("Loss"), Column(name), Column("This run against it")]
    first = _first_not_finite(run)
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


def _first_not_finite(run: RunRecord) -> int | None:
    # JSON knows no NaN: a summary whose loss is null tells that the nulls of the rounds are such losses.
    null_too = "loss" in run.summary and run.summary["loss"] is None
    losses = ((r.round, r.score.loss) for r in run.rounds)
    return next((at for at, loss in losses if (null_too if loss is None else not math.isfinite(loss))), None)


def traffic(run: RunRecord) -> Html:
    """What was sent, each way, against dense."""
    pictures = element(
        "div",
        figure("Up: bytes a round, sites to server", traffic_by_round(run, "up")),
        figure("Down: bytes a round, server to sites", traffic_by_round(run, "down")),
        class_="pictures",
    )
    total, rounds = run.traffic, max(1, len(run.rounds))
    rows = [
        (label, f"{sent:,}", f"{dense:,}", share(ratio_of(sent, dense)), fewer(ratio_of(sent, dense)),
         byte_count(sent / rounds))
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


def rejected(run: RunRecord) -> Html:
    """The rounds in which a reply was rejected or missing; nothing where every reply was taken."""
    hit = [record for record in run.rounds if record.rejected or _silent(record)]
    if not hit:
        return Html()
    total, silent = sum(r.rejected or 0 for r in hit), sum(_silent(r) for r in hit)
    sampled = sum(record.sampled or 0 for record in run.rounds)
    words = [f"{counted(total, 'was', 'were')} rejected"] if total else []
    words += [f"{silent:,} never answered"] if silent else []
    said = (
        f"Of {counted(sampled, 'reply', 'replies')} asked for, {' and '.join(words)}, "
        f"in {counted(len(hit), 'round')}. The server left these out of the model."
    )
    columns = [Column("Round"), *map(Column, ("Sites asked", "Accepted", "Rejected", "No reply"))]
    rows = [(whole(r.round), whole(r.sampled), whole(r.accepted), whole(r.rejected), whole(_silent(r))) for r in hit]
    grid = table("Rounds with replies rejected or missing", columns, rows, class_="narrow")
    shown = grid if len(hit) <= 8 else folded(f"The {len(hit)} rounds", grid)
    return section("rejected", "Rejected replies", element("p", said), shown)


def _silent(record: RoundRecord) -> int:
    if record.sampled is None or record.accepted is None:
        return 0
    return max(0, record.sampled - record.accepted - (record.rejected or 0))


def every_round(run: RunRecord) -> Html:
    """All that was recorded of each round, folded."""
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
            (whole(record.round), significant(record.score.loss), written(run, "metric", record.score.metric))
            + (f"{sent.up:,}", f"{sent.dense_up:,}", f"{sent.down:,}", f"{sent.dense_down:,}", f"{spent.total:,}")
            + (whole(record.sampled), whole(record.accepted), whole(record.rejected))
            + ((significant(record.epsilon),) if private else ())
            + (significant(record.wall_s, 3),)
            + ((significant(record.virtual_s, 3),) if timed else ())
        )
    grid = table("Each round: results on held-out data, bytes, replies, seconds", [Column(t) for t in titles], rows)
    return section("rounds", "Round by round", folded(f"All {counted(len(rows), 'round')} in figures", grid))


def spread(run: RunRecord, scores: list[Score]) -> str:
    """The least, the middle and the greatest metric of several models."""
    values = sorted(v for s in scores if (v := s.metric) is not None and math.isfinite(v))
    if not values:
        return ABSENT
    low, middle, high = (metric_value(run.metric, value) for value in (values[0], median(values), values[-1]))
    return f"{low} to {high}, median {middle}"


def provenance(run: RunRecord) -> Html:
    """What was run, on what, and the command that repeats it."""
    data = run.summary.get("data")
    data = data if isinstance(data, dict) else {}
    classes = data.get("classes")
    named = ", ".join(str(c) for c in classes) if isinstance(classes, list) else None
    settings = run.settings.get("model")
    settings = settings if isinstance(settings, dict) else {}
    density = number(run.summary.get("density"))
    versions = run.summary.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    facts: list[tuple[str, str | None]] = [
        ("Scenario", run.scenario),
        ("Data", _text(data.get("source"))),
        ("Task", _text(data.get("task"))),
        ("Classes", named),
        ("Model", _text(settings.get("preset") or settings.get("path"))),
        ("Adapter", _text(settings.get("adapter"))),
        ("Parameters federated", whole(count(run.summary.get("parameters")))),
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
    same = (
        "The privacy noise is drawn afresh each time, so the figures come out close but not the same."
        if is_noised(run)
        else "With the versions above, on the same kind of machine, it gives a model of the same SHA-256."
    )
    repeat = join([
        element("h3", "To repeat it"),
        element("p", "In the folder that holds this page and its scenario.toml:"),
        element("pre", element("code", "fedglm simulate scenario.toml --out again"), tabindex=0),
        element("p", same, class_="note"),
    ])  # fmt: skip
    shown = (
        folded(
            "scenario.toml, every default written out", element("pre", element("code", run.scenario_toml), tabindex=0)
        )
        if run.scenario_toml
        else ""
    )
    return section("provenance", "What was run", pairs(rows, class_="facts"), repeat, shown)


def _text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)
