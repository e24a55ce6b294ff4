"""The custody of a real site, over all records of its source.

The ledger knows a data set by its content too, so that another name opens no new budget. A run's recipe must not decide
what that content is: it would be another one with each seed, length or set of features. So it is the records as they
lie in the source, all of them and all of their fields, before anything is chosen, cut or held out. What cannot be read
as a record at all is none, and keeps nobody from opening the custody.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from fedglm.autoglm.data.bundled import BUNDLES
from fedglm.autoglm.data.reading import read_rows
from fedglm.autoglm.data.row_faults import RowError, RowFaults, RowPlace
from fedglm.privacy.custody.store import Custody
from fedglm.privacy.ledger.commitment import Field

LOG = logging.getLogger(__name__)


def open_custody(folder: Path, source: str, *, unit: str, faults: RowFaults | None = None) -> Custody:
    """Read and verify a site's custody.

    Args:
        folder: Where `privacy.custody.store.initialize` made it.
        source: Name of built-in data, or path of a file.
        unit: Whose privacy is at stake: "record", or the field that says whose a record is.
        faults: Counts rows that cannot be read.

    Raises:
        DataError: The file as a whole cannot be read.
        PrivacyError: As `Custody.open`.
    """
    return Custody.open(folder, lambda: _records(source, faults or RowFaults()), unit=unit)


def _records(source: str, faults: RowFaults) -> Iterator[tuple[Field, ...]]:
    if source in BUNDLES:
        records = BUNDLES[source](None).records
        for number, unit in enumerate(records.units):
            content = records.texts[number] if records.texts else records.values[number]
            yield content, records.labels[number], unit
        return
    for line, row in read_rows(source, faults=faults):
        try:
            content = json.dumps(row, sort_keys=True)
        except RecursionError:  # it was read, and is too deep to be written
            faults.count(RowError("syntax", RowPlace(source, line), "nested too deeply"))
            continue
        yield (content,)
    if faults.counts:
        LOG.warning("the records are committed to without %s", faults.in_words())
