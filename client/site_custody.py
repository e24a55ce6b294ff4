"""The custody of a real site, over all records of its source.

The ledger knows a data set by its content too, so that another name opens no new budget. A run's recipe must not decide
what that content is: it would be another one with each seed, length or set of features. So it is the records as they
lie in the source, all of them and all of their fields, before anything is chosen, cut or held out.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from fedglm.autoglm.bundled import BUNDLES
from fedglm.autoglm.reading import read_rows
from fedglm.privacy.commitment import Field
from fedglm.privacy.custody import Custody


def open_custody(folder: Path, source: str, *, unit: str) -> Custody:
    """Read and verify a site's custody.

    Args:
        folder: Where `privacy.custody.establish` made it.
        source: Name of built-in data, or path of a file.
        unit: Whose privacy is at stake: "record", or the field that says whose a record is.

    Raises:
        DataError: The records cannot be read.
        PrivacyError: As `Custody.open`.
    """
    return Custody.open(folder, lambda: _records(source), unit=unit)


def _records(source: str) -> Iterator[tuple[Field, ...]]:
    if source in BUNDLES:
        records = BUNDLES[source](None).records
        for number, unit in enumerate(records.units):
            content = records.texts[number] if records.texts else records.values[number]
            yield content, records.labels[number], unit
        return
    for _, row in read_rows(source):
        yield (json.dumps(row, sort_keys=True),)
