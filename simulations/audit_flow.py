"""The data-flow picture of an audit report: what stays at a site, what leaves it, and who sees what."""

from fedglm.simulations.markup import Html, element

_WIDTH, _HEIGHT = 720, 300


def data_flow(sites: int, *, noised: bool) -> Html:
    """From records to model, with the border of the site, as an SVG in the page's colours.

    Args:
        sites: How many there are.
        noised: Whether updates are noised.
    """
    guard = "clip, add noise" if noised else "no noise added"
    parts = [
        _frame(8, 34, 452, 222, f"each of {sites} sites, on its own machine"),
        _frame(520, 34, 192, 222, "server"),
        _box(28, 70, 110, "records", "never leave"),
        _box(178, 70, 124, "training", guard, strong=noised),
        _box(342, 70, 102, "gate", "policy, limits", strong=True),
        _box(178, 176, 124, "ledger", "epsilon spent"),
        _box(342, 176, 102, "signed log", "all that left"),
        _box(540, 70, 152, "mean of updates", "holds no record"),
        _box(540, 176, 152, "model, signed log", "countersigned"),
        _arrow(138, 96, 178, 96),
        _arrow(302, 96, 342, 96),
        _arrow(444, 96, 540, 96),
        _label(492, 88, "coded update"),
        _arrow(393, 122, 393, 176),
        _arrow(342, 150, 302, 176, bent=True),
        _arrow(616, 122, 616, 176),
        _arrow(540, 202, 444, 202, dashed=True),
        _label(492, 194, "seals"),
        _path("M 616 228 L 616 276 L 240 276 L 240 258"),
        _label(430, 271, "model, coded"),
        _path("M 240 258 L 240 250", arrow=True),
    ]
    marker = element(
        "defs",
        element(
            "marker",
            element("path", d="M 0 0 L 8 4 L 0 8 z", style="fill: var(--ink-muted)"),
            id="flow-head", markerWidth=8, markerHeight=8, refX=7, refY=4, orient="auto",
        ),
    )  # fmt: skip
    words = (
        f"Data flow: at each of {sites} sites, records feed the training, which {guard}s its updates; the gate holds "
        "them to the policy, charges the ledger and writes the signed log; coded updates alone go to the server, which "
        "keeps their mean and sends models back. Server and sites countersign each other's logs."
        if noised
        else f"Data flow: at each of {sites} sites, records feed the training, which adds no noise; the gate holds its "
        "updates to the policy and writes the signed log; coded updates go to the server, which sends models back."
    )
    return element(
        "svg", marker, *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=words, class_="flow"
    )


def _frame(x: int, y: int, width: int, height: int, title: str) -> Html:
    style = "fill: none; stroke: var(--ink-muted); stroke-dasharray: 5 4"
    box = element("rect", x=x, y=y, width=width, height=height, rx=10, style=style)
    return element("g", box, _text(x + 12, y - 10, title, "font-size: 13px; font-weight: 650"))


def _box(x: int, y: int, width: int, title: str, note: str, *, strong: bool = False) -> Html:
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
    return element("g", rect, _text(middle, y + 22, title, bold), _text(middle, y + 40, note, plain))


def _arrow(x: int, y: int, to_x: int, to_y: int, *, dashed: bool = False, bent: bool = False) -> Html:
    path = f"M {x} {y} L {to_x} {y} L {to_x} {to_y}" if bent else f"M {x} {y} L {to_x} {to_y}"
    return _path(path, arrow=True, dashed=dashed)


def _path(d: str, *, arrow: bool = False, dashed: bool = False) -> Html:
    style = "fill: none; stroke: var(--ink-muted); stroke-width: 1.4"
    style += "; marker-end: url(#flow-head)" if arrow else ""
    return element("path", d=d, style=style + ("; stroke-dasharray: 4 3" if dashed else ""))


def _label(x: int, y: int, text: str) -> Html:
    return _text(x, y, text, "font-size: 11px; text-anchor: middle; fill: var(--ink-muted)")


def _text(x: int, y: int, text: str, style: str) -> Html:
    return element("text", text, x=x, y=y, style=style)
