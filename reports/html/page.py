"""Report pages: one file each, without scripts or requests, both of which its Content-Security-Policy forbids.

A page can be mailed, archived and printed. The same files in the run folder give the same bytes.
"""

from pathlib import Path

from fedglm.core.files import write_atomically
from fedglm.reports.html.markup import Html, element
from fedglm.run_folder.names import REPORT
from fedglm.run_folder.record import RunRecord

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_page(folder: Path, title: str, body: Html) -> Path:
    """Write `FOLDER/report.html` atomically, and return its path.

    Raises:
        StorageError: The page cannot be written.
    """
    write_atomically(folder / REPORT, page(title, body))
    return folder / REPORT


def page(title: str, body: Html) -> str:
    """Make the complete HTML document around `body`."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("link", rel="icon", href="data:,"),
        element("style", Html(style)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', body), lang='en')}\n"


def header(above: str, title: str, summary: str) -> Html:
    """Make the header of a page: a line of context, the headline, and a summary."""
    return element(
        "header", element("p", above, class_="above"), element("h1", title), element("p", summary, class_="lede")
    )


def footer(run: RunRecord) -> Html:
    """Make the footer of a page, with the version of fedglm that wrote the run."""
    versions = run.summary.get("versions")
    version = versions.get("fedglm") if isinstance(versions, dict) else None
    name = f"fedglm {version}" if version else "fedglm"
    return element(
        "footer", element("p", f"Written by {name} from the files of the run. This page asks nothing of the network.")
    )
