"""HTML that is escaped by construction: plain text becomes markup through `element` alone.

Example:
    >>> element("p", "a < b, ", element("b", "truly"), class_="note")
    '<p class="note">a &lt; b, <b>truly</b></p>'
"""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Characters that HTML and XML forbid, and the controls of text direction, by which a name could rearrange a page.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_VOID = frozenset({"br", "link", "meta"})


class Html(str):
    """Markup. A `str` that is not `Html` is text, and is escaped when it is put into a page."""

    __slots__ = ()


def clean(text: str) -> str:
    """Replace every character that must not stand in a page by U+FFFD."""
    return _FORBIDDEN.sub("\ufffd", text)


def escape(text: str) -> Html:
    """Escape text, quotes too; `Html` is returned unchanged."""
    return text if isinstance(text, Html) else Html(html.escape(clean(text), quote=True))


def join(parts: Iterable[str]) -> Html:
    """Concatenate parts; text among them is escaped."""
    return Html("".join(escape(part) for part in parts))


def element(tag: str, *children: str, **attributes: str | int | None) -> Html:
    """Make an element, closed as XML requires (HTML parsers accept it).

    Args:
        tag: Name of the element; not escaped, so never from outside.
        children: Text (escaped) and markup.
        attributes: Values by name: `class_` for `class`, other underscores for hyphens; None omits an attribute.
    """
    attribute_text = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Html(f"<{tag}{attribute_text} />")
    return Html(f"<{tag}{attribute_text}>{join(children)}</{tag}>")


def prose(text: str) -> Html:
    """Mark up a text with command line options (`--epsilon`), inside which no line breaks."""
    parts = re.split(r"(?<!\S)(--[a-z][a-z-]*)", text)
    return join(element("code", part, class_="option") if index % 2 else part for index, part in enumerate(parts))


def isolated(text: str) -> Html:
    """Isolate a name from outside (`<bdi>`), so that it cannot change the text direction around it."""
    return element("bdi", text)


@dataclass(frozen=True)
class Column:
    """Heading of a column; columns of figures are right-aligned, others left-aligned."""

    title: str
    figures: bool = True


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[str]], *, class_: str | None = None) -> Html:
    """Make a table whose first column has row headings, in a box that scrolls sideways on a narrow screen.

    Args:
        caption: Caption, which is also the label of the box.
        columns: Column headings.
        rows: Cells of each row, one a column; text is escaped, `Html` is not.
        class_: CSS class of the box, beside `scroll`.
    """
    kinds = ["figure" if column.figures else None for column in columns]
    head = element("tr", *(element("th", c.title, scope="col", class_=k) for c, k in zip(columns, kinds, strict=True)))
    body = [
        element(
            "tr",
            element("th", row[0], scope="row", class_=kinds[0]),
            *(element("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)),
        )
        for row in rows
    ]
    grid = element("table", element("caption", caption), element("thead", head), element("tbody", *body))
    return element(
        "div", grid, class_=f"scroll {class_}" if class_ else "scroll", role="region", aria_label=caption, tabindex=0
    )


def description_list(rows: Iterable[tuple[str, str]], *, class_: str | None = None) -> Html:
    """Make a description list (`<dl>`) of terms and values."""
    return element(
        "dl", *(element("div", element("dt", term), element("dd", value)) for term, value in rows), class_=class_
    )


def section(anchor: str, title: str, *children: str) -> Html:
    """Make a section that is labelled by its heading, for assistive technology."""
    heading = element("h2", title, id=f"{anchor}-title")
    return element("section", heading, *children, id=anchor, aria_labelledby=f"{anchor}-title")


def folded(summary: str, *children: str) -> Html:
    """Make a `<details>` element, which the reader can open."""
    return element("details", element("summary", summary), *children)
