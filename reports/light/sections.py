"""Sections of a light model's page: the frontier, the table, the bytes, the layers, and where it all comes from."""

from fedglm.reports.formats import (
    format_bytes,
    format_duration,
    format_integer,
    format_metric,
    format_number,
    pluralize,
)
from fedglm.reports.html.markup import Column, Html, description_list, element, folded, isolated, join, section, table
from fedglm.reports.light.figures import NOT_MEASURED, format_ms, format_rise, format_times, measured
from fedglm.reports.light.own_records import compare_on_own_records
from fedglm.reports.light.pictures import draw_files, draw_frontier, draw_layers
from fedglm.reports.light.record import LightRecord
from fedglm.reports.light.repair import describe_repair


def render_verdict(record: LightRecord) -> Html:
    """Render the warning that nothing was released; nothing where something was."""
    if record.met:
        return Html()
    near = record.nearest
    nearest = (
        f"The nearest within the tolerance is {near.name}: {format_times(near.size_ratio)} at "
        f"{format_rise(near.loss_rise)}."
        if near is not None
        else "Nothing that was tried is within the tolerance."
    )
    ended = " The search was ended early." if record.interrupted else ""
    return element(
        "section",
        element("h2", "Nothing was released", id="verdict-title"),
        element("p", f"No candidate met the goals: {record.goals}. {nearest}{ended}"),
        class_="notice warning",
        aria_labelledby="verdict-title",
    )


def render_frontier(record: LightRecord) -> Html:
    """Render what was tried: the candidates that no other beats in both size and loss, and what was left out."""
    picture = draw_frontier(record)
    shown = element("figure", element("figcaption", "How small, and how much worse"), picture) if picture else Html()
    rows = [
        (isolated(point.name), format_times(point.size_ratio), format_rise(point.loss_rise),
         "in full" if point.in_full else "briefly")
        for point in sorted(record.frontier, key=lambda point: -point.size_ratio)
    ]  # fmt: skip
    columns = [Column("Candidate", figures=False), Column("Smaller"), Column("Loss rise"), Column("Trained")]
    grid = table("Candidates that no other beats in both", columns, rows, class_="narrow") if rows else Html()
    out = [(isolated(one.name), measured(one.excess, format_rise)) for one in record.left_out]
    columns = [Column("Not tried", figures=False), Column("Above the goals, at the least")]
    left = (
        table("Left out, as no cut makes them small or fast enough", columns, out, class_="narrow") if out else Html()
    )
    if not (picture or rows or out):
        return Html()
    note = element(
        "p",
        "The loss rise is relative to a dense model that trained as long on the same public text. All files of a "
        "release count in its size.",
        class_="note",
    )
    beside = element("div", shown, element("div", grid), class_="beside")
    return section("frontier", "What was tried", beside, left, note)


def render_table(record: LightRecord) -> Html:
    """Render the models side by side: sizes and losses, and then distances and costs."""
    if not record.rows:
        return Html()
    metric = record.metric
    first = [
        (isolated(row.name), measured(row.bytes, format_bytes), measured(row.size_ratio, format_times),
         measured(row.bits_per_weight, lambda bits: f"{bits:.2f}"), measured(row.parameters, format_integer),
         measured(row.loss, format_number), measured(row.deviation, lambda error: f"± {format_number(error, 2)}"),
         measured(row.loss_rise, format_rise), measured(row.metric_value, lambda value: format_metric(metric, value)))
        for row in record.rows
    ]  # fmt: skip
    second = [
        (isolated(row.name), measured(row.kl_mean, lambda value: format_number(value, 3)),
         measured(row.kl_99, lambda value: format_number(value, 3)),
         measured(row.agreement, lambda share: f"{100 * share:.1f}%"), measured(row.decode_ms, format_ms),
         measured(row.prefill_ms, format_ms), measured(row.peak_bytes, format_bytes),
         measured(row.count, format_integer))
        for row in record.rows
    ]  # fmt: skip
    sizes = ("Size", "Smaller", "Bits a weight", "Parameters", "Loss", "Its error", "Rise", metric.capitalize())
    costs = ("KL, mean", "KL, 99%", "Same top-1", "A token", "A prompt", "Peak memory", "n")
    note = (
        "Loss in nats on unseen text, with its standard error; KL divergence from the dense model's predictions, in "
        f"nats; times {record.times}, by the runtime of a node; memory measured on this machine."
    )
    return section(
        "models",
        "Side by side",
        table("Size and loss", [Column("Model", figures=False), *map(Column, sizes)], first),
        table("Nearness to the dense model, and costs", [Column("Model", figures=False), *map(Column, costs)], second),
        element("p", note, class_="note"),
        render_own_records(record),
    )


def render_own_records(record: LightRecord) -> Html:
    """Render the losses on the held-out records of the run, or why they were not looked at; nothing without a run."""
    if record.own_records is None:
        return Html()
    rows = [
        (isolated(row.name), measured(row.own_loss, format_number),
         measured(row.own_deviation, lambda error: f"± {format_number(error, 2)}"),
         measured(row.own_loss_rise, format_rise),
         measured(row.own_metric_value, lambda value: format_metric(record.metric, value)),
         measured(row.own_count, format_integer))
        for row in record.rows if row.own_loss is not None
    ]  # fmt: skip
    if not rows:
        return element("p", f"Not measured on the run's own held-out records: {record.own_records}.", class_="note")
    titles = ("Loss", "Its error", "Rise", record.metric.capitalize(), "n")
    columns = [Column("Model", figures=False), *map(Column, titles)]
    left_out = f" {record.own_records}." if record.own_records else ""
    return join([
        table("On the run's own held-out records", columns, rows, class_="narrow"),
        element("p", compare_on_own_records(record)),
        element("p", f"Of those that the simulation evaluated on: no model here was fitted to them.{left_out}",
                class_="note"),
    ])  # fmt: skip


def render_files(record: LightRecord) -> Html:
    """Render the bytes of each file of the release."""
    picture = draw_files(record)
    if picture is None:
        return Html()
    total = sum(record.files.values())
    rows = [
        (isolated(name), format_integer(size), f"{100 * size / max(1, total):.1f}%")
        for name, size in sorted(record.files.items(), key=lambda item: -item[1])
    ]
    grid = table("Every byte of the release", [Column("File", figures=False), Column("Bytes"), Column("Share")],
                 [*rows, ("All", format_integer(total), "100%")])  # fmt: skip
    shown = element("figure", element("figcaption", "Bytes by file"), picture)
    return section("files", "What it takes on disk", element("div", shown, element("div", grid), class_="beside"))


def render_layers(record: LightRecord) -> Html:
    """Render what became of each matrix, and what was repaired."""
    if not record.layers:
        return Html()
    picture = draw_layers(record)
    shown = element("figure", element("figcaption", "Nearness of each layer"), picture) if picture else Html()
    rows = [
        (isolated(layer.name), layer.scheme, format_integer(layer.weights), f"{layer.bits_per_weight:.2f}",
         measured(layer.entropy, lambda bits: f"{bits:.2f}"),
         measured(layer.zeros, lambda share: f"{100 * share:.0f}%"),
         measured(layer.cosine, lambda cosine: f"{cosine:.5f}"), measured(layer.error, lambda error: f"{error:.2g}"),
         ", ".join(layer.repair) or "none")
        for layer in record.layers
    ]  # fmt: skip
    figures = ("Weights", "Bits a weight", "Entropy", "Zeros", "Cosine", "Error")
    words = [Column(title, figures=False) for title in ("Matrix", "Codes", "Repair")]
    columns = [*words[:2], *map(Column, figures), words[2]]
    grid = table("Each matrix: its codes, and its outputs against the reference's", columns, rows)
    everything = folded(f"All {pluralize(len(rows), 'matrix', 'matrices')} in figures", grid)
    return section("layers", "Layer by layer", element("p", describe_repair(record)), shown, everything)


def _write_made(record: LightRecord) -> str | None:
    if record.models_made is None:
        return None
    found = record.models_from_cache
    return f"{record.models_made}" + (f"; {found} more came from the cache of earlier searches" if found else "")


def render_provenance(record: LightRecord) -> Html:
    """Render goals, text, seed and versions; privacy; what was not measured, and what the model is not for."""
    facts: list[tuple[str, str | None]] = [
        ("Goals", record.goals),
        ("Tolerance", format_rise(record.tolerance)),
        ("Recipe", record.name),
        ("Stages", ", ".join(record.stages) or None),
        ("Text", record.text or None),
        ("Seed", None if record.seed is None else str(record.seed)),
        ("Steps", None if record.steps is None else format_integer(record.steps)),
        ("Models trained", _write_made(record)),
        ("Wall time", None if record.seconds is None else format_duration(record.seconds)),
        ("Device of the times", record.device or NOT_MEASURED),
        ("Times", record.times),
        ("Graphs", ", ".join(f"{phase} in {form}" for phase, form in (record.formats or {}).items()) or None),
        ("Versions", ", ".join(f"{name} {version}" for name, version in record.versions.items()) or None),
    ]
    rows = [(term, isolated(value)) for term, value in facts if value is not None]
    lists = [
        join([element("h3", title), element("ul", *(element("li", item) for item in items))])
        for title, items in (("Not measured", record.not_measured), ("What it is not for", record.limits))
        if items
    ]
    privacy = join([element("h3", "Privacy"), element("p", record.privacy)]) if record.privacy else Html()
    return section("provenance", "Where it comes from", description_list(rows, class_="facts"), privacy, *lists)
