"""A page: one file without a script and without a request to anywhere (its own Content-Security-Policy forbids both).

It can be mailed, archived and printed. The same files in the run folder give the same bytes.
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
        StorageError: It cannot be written.
    """
    write_atomically(folder / REPORT, page(title, body))
    return folder / REPORT


def page(title: str, body: Html) -> str:
    """A whole page around `body`, which makes no request and runs no script."""
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


def header(above: str, title: str, summary_line: str) -> Html:
    """The head of a page: what it is about, its one sentence, and what follows from it."""
    return element(
        "header", element("p", above, class_="above"), element("h1", title), element("p", summary_line, class_="lede")
    )


def footer(run: RunRecord) -> Html:
    """The foot of a page: which fedglm wrote the run."""
    versions = run.summary.get("versions")
    version = versions.get("fedglm") if isinstance(versions, dict) else None
    name = f"fedglm {version}" if version else "fedglm"
    return element(
        "footer", element("p", f"Written by {name} from the files of the run. This page asks nothing of the network.")
    )
