"""Headline, summary and key figures of a run's page."""

import math

from fedglm.reports.formats import (
    describe_saving,
    format_bytes,
    format_duration,
    format_integer,
    format_metric,
    format_number,
    format_percent,
    pluralize,
)
from fedglm.reports.html.markup import Html, element
from fedglm.reports.run.guarantees import format_delta, mark_unnoised, read_node_guarantee
from fedglm.run_folder.record import RunRecord, count, number


def compute_byte_ratio(coded: int, dense: int) -> float | None:
    """Return coded over dense bytes; None where either is 0."""
    return coded / dense if coded and dense else None


def count_nodes(run: RunRecord) -> int | None:
    """Return the number of nodes of a run; None where its files do not say."""
    return count(run.summary.get("nodes")) or len(run.sites) or None


def count_rounds(run: RunRecord) -> int:
    """Return the number of rounds of a run."""
    return count(run.summary.get("rounds")) or len(run.rounds)


def write_headline(run: RunRecord) -> str:
    """Write the result of the run in one sentence."""
    value = run.final.metric
    if not run.is_measured:
        reached = "Trained"
    elif value is None or not math.isfinite(value):
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
    how_long = pluralize(count_rounds(run), "round")
    return f"{reached} {'after' if run.is_measured else 'for'} {how_long}{where}{sent}"


def write_summary(run: RunRecord) -> str:
    """Write the result before and after training, the bytes sent, and the baselines' results, in sentences."""
    metric = run.metric
    parts = []
    before = run.initial.metric if run.initial else None
    if before is not None:
        moved = f"from {format_metric(metric, before)} before training to {format_metric(metric, run.final.metric)}"
        parts.append(f"{metric.capitalize()} on held-out data went {moved}.")
    if not run.is_measured:
        parts.append(
            "How good the model is was not measured: the server had no held-out records (evaluation.data of the "
            "scenario names some)."
        )
    elif run.is_deployed and (records := count(run.summary.get("evaluated"))) is not None:
        parts.append(f"Measured on {pluralize(records, 'held-out record')} that the server has itself.")
    if (best := _find_best_round(run)) is not None:
        parts.append(best)
    traffic = run.traffic
    if traffic.total and traffic.dense_total:
        dense = format_bytes(traffic.dense_total)
        sent = format_bytes(traffic.total)
        parts.append(f"All training messages together took {sent}; dense float32 would have taken {dense}.")
    compared = [
        f"{words} {format_metric(metric, score.metric)}"
        for words, score in (
            (f"one model on all data pooled{mark_unnoised(run)} reaches", run.pooled),
            (f"a model trained at one site alone{mark_unnoised(run)}, on average,", run.alone),
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
    loss = f"loss {format_number(run.final.loss)}" if run.is_measured else "not measured"
    up = _compare_dense(traffic.uplink, traffic.dense_uplink)
    down = _compare_dense(traffic.downlink, traffic.dense_downlink)
    tiles = [
        (metric.capitalize(), format_metric(metric, run.final.metric), loss + _describe_start(before, metric), "lead"),
        ("Bytes, both ways", format_bytes(traffic.total), _compare_dense(traffic.total, traffic.dense_total), "lead"),
        ("Up, sites to server", format_bytes(traffic.uplink), up, None),
        ("Down, server to sites", format_bytes(traffic.downlink), down, None),
        ("Rounds", format_integer(count_rounds(run)), _describe_rejections(run), None),
        ("Sites", format_integer(count_nodes(run)), _describe_parameters(run), None),
        ("Time", format_duration(number(run.summary.get("wall_s"))), _describe_time(run), None),
    ]
    of_nodes, epsilon = read_node_guarantee(run), run.epsilon if run.epsilon is not None else run.epsilon_limit
    kind = "lead" if of_nodes and epsilon is not None else None  # two tiles: a row of their own
    if epsilon is not None:
        note = f"δ = {format_delta(number(run.summary.get('delta')))}; each unit of a site"
        relation = "=" if run.epsilon is not None else "≤"
        tiles.append(("Privacy loss", f"ε {relation} {format_number(epsilon, 3)}", note, kind))
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


def _find_best_round(run: RunRecord) -> str | None:
    """Describe the round with the smallest loss; None where it is the last one, or nothing was measured."""
    measured = [record for record in run.rounds if record.score.loss is not None and math.isfinite(record.score.loss)]
    best = min(measured, key=lambda record: record.score.loss or 0.0, default=None)
    if not run.is_deployed or best is None or best is run.rounds[-1]:
        return None
    reached = f"loss {format_number(best.score.loss)}, {run.metric} {format_metric(run.metric, best.score.metric)}"
    return f"The best round was {best.round} ({reached}); the model is the last round's."


def _describe_start(before: float | None, metric: str) -> str:
    return "" if before is None else f"; {format_metric(metric, before)} before training"


def _compare_dense(coded: int, dense: int) -> str:
    ratio = compute_byte_ratio(coded, dense)
    return "" if ratio is None else f"{describe_saving(ratio)}; {format_percent(ratio)} of dense, {format_bytes(dense)}"


def _describe_rejections(run: RunRecord) -> str:
    rejected, absent = sum(r.rejected or 0 for r in run.rounds), sum(r.absent for r in run.rounds)
    words = ["no reply rejected" if not rejected else f"{pluralize(rejected, 'reply', 'replies')} rejected"]
    return "; ".join([*words, *([f"{absent:,} missing, sites were absent"] if absent else [])])


def _describe_parameters(run: RunRecord) -> str:
    parameters = count(run.summary.get("parameters"))
    return "" if parameters is None else f"{parameters:,} parameters federated"


def _describe_time(run: RunRecord) -> str:
    virtual = number(run.summary.get("virtual_s"))
    on = run.text("engine")
    parts = [f"{format_duration(virtual)} on the simulated devices"] if virtual is not None else []
    if run.is_deployed:
        return "wall clock of the rounds, real sites"
    return "; ".join([*parts, *([f"wall clock, engine {on}"] if on else ["wall clock"])])
