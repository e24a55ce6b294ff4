"""Built-in data sets, from packages that are installed anyway: nothing is downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fedglm.autoglm.data.bins import bins_from_ranges, bins_from_reference
from fedglm.autoglm.data.records import Records
from fedglm.autoglm.errors import DataError
from fedglm.inference.inputs.tables import TableEncoder
from fedglm.inference.inputs.task import Kind

_PUBLIC_ROWS = 69  # of breast-cancer's 569 rows, always the same: 500 are left to the sites
_PUBLIC_SEED = 1995  # the year of the data set


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A built-in data set.

    Attributes:
        kind: Kind of its task.
        records: Records that are distributed to the sites.
        table: Encoder of a table's rows, made from public knowledge alone; None for text.
        public: Records that were set aside and are at no site; None where there are none.
    """

    kind: Kind
    records: Records
    table: TableEncoder | None = None
    public: Records | None = None


def breast_cancer(bins: int | None) -> Bundle:
    """Load Wisconsin Diagnostic Breast Cancer: 569 tumours, 30 features, malignant or benign (Street et al., 1993).

    From ``sklearn.datasets``. 69 rows are set aside: the bins are computed from them, and the server may see them; they
    are at no site.
    """
    table = _load_sklearn("load_breast_cancer")
    order = np.random.default_rng(_PUBLIC_SEED).permutation(len(table.data))
    public, private = np.sort(order[:_PUBLIC_ROWS]), np.sort(order[_PUBLIC_ROWS:])
    origin = f"quantiles of a public reference sample: {_PUBLIC_ROWS} of the 569 rows, set aside, at no site"
    encoder = bins_from_reference(tuple(table.feature_names.tolist()), table.data[public], bins or 16, origin=origin)

    def rows(chosen: npt.NDArray[np.int64]) -> Records:
        names = [str(table.target_names[target]) for target in table.target[chosen]]
        return Records(values=table.data[chosen], labels=names, units=[str(row) for row in chosen])

    return Bundle(kind="tabular-classification", records=rows(private), table=encoder, public=rows(public))


def digits(bins: int | None) -> Bundle:
    """Load optical recognition of handwritten digits: 1797 images, 8 x 8 pixels, 0 to 16 (Alpaydin and Kaynak, 1998).

    From ``sklearn.datasets``. Its description declares the pixels' range, so the bins need no sample.
    """
    table = _load_sklearn("load_digits")
    encoder = bins_from_ranges(dict.fromkeys(table.feature_names, (0.0, 16.0)), bins or 8)
    names = [str(target) for target in table.target]
    records = Records(values=table.data, labels=names, units=[str(row) for row in range(len(names))])
    return Bundle(kind="tabular-classification", records=records, table=encoder)


def _load_sklearn(loader: str) -> Any:
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ModuleNotFoundError as exc:  # a node needs it only for these data
        raise DataError(
            "built-in tables need scikit-learn, which is not installed: pip install 'fedglm[server]'"
        ) from exc
    return getattr(datasets, loader)()


def pydoc(bins: int | None) -> Bundle:
    """Load the Python language reference in CPython (``pydoc_data.topics``): one document per topic, in three groups.

    Some topics repeat others verbatim ("compound" contains "if", "while", "for"); a paragraph is kept in the shortest
    topic that has it, so that held-out text is no copy of training text. The text differs between Python versions.
    """
    del bins  # text has none
    from pydoc_data.topics import topics

    seen: set[str] = set()
    records = Records()
    for name, text in sorted(topics.items(), key=lambda item: (len(item[1]), item[0])):
        fresh = [part for part in text.split("\n\n") if part.strip() and part not in seen]
        seen.update(fresh)
        if fresh:
            records.units.append(name)
            records.texts.append("\n\n".join(fresh))
            records.labels.append(_pydoc_group(text))
    return Bundle(kind="language-model", records=records)


def _pydoc_group(text: str) -> str:
    title = text.split("\n", 1)[0].lower()
    if "statement" in title:
        return "statements"
    data_model = ("type", "class", "object", "attribute", "method", "mapping", "sequence", "special", "custom")
    return "data model" if any(word in title for word in data_model) else "expressions and execution"


BUNDLES: MappingProxyType[str, Callable[[int | None], Bundle]] = MappingProxyType(
    {"breast-cancer": breast_cancer, "digits": digits, "pydoc": pydoc}
)
