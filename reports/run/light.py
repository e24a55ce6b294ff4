"""The light release of a run on its page: what it costs and loses, or why there is none."""

from fedglm.reports.formats import ABSENT, format_bytes, format_number, format_percent
from fedglm.reports.html.markup import Html, description_list, element, isolated, prose, section
from fedglm.run_folder.names import LIGHT
from fedglm.run_folder.record import RunRecord, number


def render_light(run: RunRecord) -> Html:
    """Render the figures of the light release; nothing where the run was to make none."""
    light = run.summary.get("light")
    if not isinstance(light, dict):
        return Html()
    reason, recipe, privacy = (light.get(name) for name in ("reason", "recipe", "privacy"))
    size, ratio, tolerance = (number(light.get(name)) for name in ("bytes", "size_ratio", "tolerance"))
    rise, error = (number(light.get(name)) for name in ("loss_rise", "rise_error"))
    lost = "Accuracy lost, of" if light.get("metric") == "accuracy" else "Loss above"
    facts = [
        ("Bytes of all files", None if size is None else format_bytes(size)),
        ("Smaller than the model in FP32", None if ratio is None else f"{ratio:.1f}x"),
        (f"{lost} that of an equally trained dense model", None if rise is None else f"{rise:+.2%}"),
        ("Its standard error", None if error is None else format_percent(error)),
        ("Allowed", None if tolerance is None else format_percent(tolerance)),
        ("Recipe", recipe if isinstance(recipe, str) else None),
        ("Version", format_number(number(light.get("version")))),
    ]
    rows = [(term, isolated(value)) for term, value in facts if value is not None and value != ABSENT]
    if isinstance(reason, str):
        head = element("p", prose(f"None was released: {reason}"), class_="notice warning")
    else:
        head = element("p", prose(f"It lies in {LIGHT}/, signed by the server."))
    note = element("p", prose(privacy), class_="note") if isinstance(privacy, str) else ""
    return section("light", "Light release", head, description_list(rows), note)
