"""HTML that is escaped by construction: plain text becomes markup through `element` alone.

Example:
    >>> element("p", "a < b, ", element("b", "truly"), class_="note")
    '<p class="note">a &lt; b, <b>truly</b></p>'
"""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# What neither HTML nor XML may hold, and the marks that turn the direction of text: a name must not rearrange a page.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_VOID = frozenset({"br", "link", "meta"})


class Html(str):
    """Markup. Whatever is a `str` but not `Html` is text, and is escaped where it enters a page."""

    __slots__ = ()


def clean(text: str) -> str:
    """The text with U+FFFD for every character that a page cannot show."""
    return _UNPRINTABLE.sub("\ufffd", text)


def escape(text: str) -> Html:
    """The text as markup, quotes too; `Html` stays as it is."""
    return text if isinstance(text, Html) else Html(html.escape(clean(text), quote=True))


def join(parts: Iterable[str]) -> Html:
    """The parts one after the other, texts escaped."""
    return Html("".join(escape(part) for part in parts))


def element(tag: str, *children: str, **attributes: str | int | None) -> Html:
    """One element, closed as XML wants it (which HTML reads alike).

    Args:
        tag: The element's name, written by us.
        children: Texts (escaped) and markup.
        attributes: `class_` stands for `class`, other underscores for hyphens; None leaves an attribute out.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Html(f"<{tag}{written} />")
    return Html(f"<{tag}{written}>{join(children)}</{tag}>")


def prose(text: str) -> Html:
    """A text of ours in which command line options (`--epsilon`) may stand; a line does not break inside one."""
    parts = re.split(r"(?<!\S)(--[a-z][a-z-]*)", text)
    return join(element("code", part, class_="option") if index % 2 else part for index, part in enumerate(parts))


def isolated(text: str) -> Html:
    """A name from outside, kept from changing the direction of what stands around it."""
    return element("bdi", text)


@dataclass(frozen=True)
class Column:
    """A column's heading; figures stand to the right, words to the left."""

    title: str
    figures: bool = True


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[str]], *, class_: str | None = None) -> Html:
    """A table whose first column heads its rows, in a box that scrolls sideways on a narrow screen.

    Args:
        caption: What the table says, in words.
        columns: The headings.
        rows: One cell a column; a cell that is `Html` is taken as it is.
        class_: A class for the whole box.
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


def pairs(rows: Iterable[tuple[str, str]], *, class_: str | None = None) -> Html:
    """Terms and what they are, as a description list."""
    return element(
        "dl", *(element("div", element("dt", term), element("dd", value)) for term, value in rows), class_=class_
    )


def section(anchor: str, title: str, *children: str) -> Html:
    """A section with its heading, so that assistive technology can name it."""
    heading = element("h2", title, id=f"{anchor}-title")
    return element("section", heading, *children, id=anchor, aria_labelledby=f"{anchor}-title")


def folded(summary: str, *children: str) -> Html:
    """What the reader may open."""
    return element("details", element("summary", summary), *children)
