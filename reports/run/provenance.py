"""What was run: scenario, data, model and versions, and the command that repeats the run."""

from fedglm.reports.formats import (
    ABSENT,
    format_integer,
)
from fedglm.reports.html.markup import Html, description_list, element, folded, isolated, join, section
from fedglm.reports.run.guarantees import is_noised
from fedglm.run_folder.record import RunRecord, count, number


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
    command, where = (
        "fedglm simulate scenario.toml --out again",
        "In the folder that holds this page and its scenario.toml:",
    )
    if run.is_deployed:
        command, where = (
            "fedglm run scenario.toml -C PROJECT --name again",
            "By the same sites, in the folder that holds this page and its scenario.toml; PROJECT is the server's "
            "project:",
        )
    reproducibility = (
        "The privacy noise is drawn afresh each time, so the figures come out close but not the same."
        if is_noised(run)
        else "With the versions above, on the same kind of machine, it gives a model of the same SHA-256."
    )
    instructions = join([
        element("h3", "To repeat it"),
        element("p", where),
        element("pre", element("code", command), tabindex=0),
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
