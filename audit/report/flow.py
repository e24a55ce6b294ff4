"""Draws the data-flow picture of an audit report: what stays at a site, what leaves it, and who sees what."""

from fedglm.reports.html.markup import Html, element

_WIDTH, _HEIGHT = 748, 300


def draw_data_flow(sites: int, *, noised: bool, measured: bool = False, together: bool = False) -> Html:
    """Draw the way from records to model, with the border of the site, as SVG in the page's colours.

    Args:
        sites: Number of sites.
        noised: Whether updates are noised.
        measured: Whether measures of the records left, too.
        together: Whether sites and server were one machine.
    """
    where = f"each of {sites} sites" + (", on one machine here" if together else "")
    training = "clips, adds noise" if noised else "adds no noise"
    parts = [
        _draw_frame(8, 34, 452, 222, where),
        _draw_frame(560, 34, 180, 222, "server"),
        _draw_box(28, 70, 110, "records", "never leave"),
        _draw_box(178, 70, 124, "training", training, strong=noised),
        _draw_box(342, 70, 102, "gate", "policy, limits", strong=True),
        _draw_box(178, 176, 124, "ledger", "epsilon spent" if noised else "what was sent"),
        _draw_box(342, 176, 102, "signed log", "all that left"),
        _draw_box(574, 70, 152, "mean of updates", "holds no record"),
        _draw_box(574, 176, 152, "model, signed log", "countersigned"),
        _draw_path("M 138 96 L 178 96", arrow=True),
        _draw_path("M 302 96 L 342 96", arrow=True),
        _draw_path("M 444 96 L 574 96", arrow=True),
        _draw_label(510, 88, "coded update"),
        *([_draw_label(510, 114, "measures")] if measured else []),
        _draw_path("M 410 122 L 410 176", arrow=True),
        _draw_path("M 366 122 L 366 149 L 240 149 L 240 176", arrow=True),
        _draw_path("M 650 122 L 650 176", arrow=True),
        _draw_path("M 574 202 L 444 202", arrow=True, dashed=True),
        _draw_label(510, 194, "seals, both ways"),
        _draw_path("M 650 228 L 650 280 L 240 280 L 240 258", arrow=True),
        _draw_label(445, 274, "model, coded"),
    ]
    marker = element(
        "defs",
        element(
            "marker",
            element("path", d="M 0 0 L 8 4 L 0 8 z", style="fill: var(--ink-muted)"),
            id="flow-head", markerWidth=8, markerHeight=8, refX=7, refY=4, orient="auto",
        ),
    )  # fmt: skip
    clause = "clips its updates and adds noise" if noised else "adds no noise to its updates"
    sent = f"Coded updates and {'noised ' if noised else ''}measures" if measured else "Coded updates"
    alternative = (
        f"Data flow: at {where}, records feed the training, which {clause}. The gate holds them to the policy, "
        f"charges the ledger and writes the signed log. {sent} alone go to the server, which keeps the updates' "
        "mean and sends models back. Server and sites countersign each other's logs."
    )
    return element(
        "svg", marker, *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=alternative, class_="flow"
    )


def _draw_frame(x: int, y: int, width: int, height: int, title: str) -> Html:
    style = "fill: none; stroke: var(--ink-muted); stroke-dasharray: 5 4"
    box = element("rect", x=x, y=y, width=width, height=height, rx=10, style=style)
    return element("g", box, _draw_text(x + 12, y - 10, title, "font-size: 13px; font-weight: 650"))


def _draw_box(x: int, y: int, width: int, title: str, note: str, *, strong: bool = False) -> Html:
    edge = "var(--ink-pooled)" if strong else "var(--ink-rule)"
    rect = element(
        "rect",
        x=x,
        y=y,
        width=width,
        height=52,
        rx=7,
        style=f"fill: var(--ink-paper); stroke: {edge}; stroke-width: 1.6",
    )
    middle = x + width // 2
    bold = "font-size: 13px; font-weight: 650; text-anchor: middle"
    plain = "font-size: 11px; text-anchor: middle; fill: var(--ink-muted)"
    return element("g", rect, _draw_text(middle, y + 22, title, bold), _draw_text(middle, y + 40, note, plain))


def _draw_path(d: str, *, arrow: bool = False, dashed: bool = False) -> Html:
    style = "fill: none; stroke: var(--ink-muted); stroke-width: 1.4"
    style += "; marker-end: url(#flow-head)" if arrow else ""
    return element("path", d=d, style=style + ("; stroke-dasharray: 4 3" if dashed else ""))


def _draw_label(x: int, y: int, text: str) -> Html:
    return _draw_text(x, y, text, "font-size: 11px; text-anchor: middle; fill: var(--ink-muted)")


def _draw_text(x: int, y: int, text: str, style: str) -> Html:
    return element("text", text, x=x, y=y, style=style)
