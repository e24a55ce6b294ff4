"""The custody of a site in a deployment, with a commitment to all records of its source.

The ledger identifies a data set by its content too, so that another name opens no new budget. A run's recipe must not
decide what that content is: it would differ with each seed, length or set of features. Therefore the commitment is to
the records as they are in the source, all of them and all of their fields, before anything is selected, truncated or
held out. A row that cannot be read as a record is left out, and does not prevent the custody from being opened.
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
    """Open and verify a site's custody; the records are read when its commitment is first needed.

    Args:
        folder: Folder that `privacy.custody.store.initialize` made.
        source: Name of built-in data, or path of a file.
        unit: Unit of privacy: "record", or the name of the field that identifies the unit of a record.
        faults: Counts rows that cannot be read.

    Raises:
        PrivacyError: As `Custody.open`.
    """
    return Custody.open(folder, lambda: _read_records(source, faults or RowFaults()), unit=unit)


def _read_records(source: str, faults: RowFaults) -> Iterator[tuple[Field, ...]]:
    if source in BUNDLES:
        records = BUNDLES[source](None).records
        for number, unit in enumerate(records.units):
            content = records.texts[number] if records.texts else records.values[number]
            yield content, records.labels[number], unit
        return
    for line, row in read_rows(source, faults=faults):
        try:
            content = json.dumps(row, sort_keys=True)
        except RecursionError:  # json reads deeper values than it writes
            faults.count(RowError("syntax", RowPlace(source, line), "nested too deeply"))
            continue
        yield (content,)
    if faults.counts:
        LOG.warning("the records are committed to without %s", faults.in_words())
