"""Run folders with odd values, as hypothesis draws them, and the check that their page is one."""

import math
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from run_files import checked, run_files, site, write

from fedglm.reports.run.write import write_report

ODD = st.sampled_from([None, math.nan, math.inf, -1, 0, 1e300, 10**400, True, "", "x", [], [1], {}, {"loss": "y"}])
FIELDS = sorted(run_files()[1])


ODD_FIELDS = {
    "changes": st.dictionaries(st.sampled_from(FIELDS), ODD, max_size=6),
    "line": st.dictionaries(st.sampled_from(sorted(run_files()[0][0])), ODD, max_size=4),
    "entry": st.dictionaries(st.sampled_from(sorted(site("a", 0))), ODD, max_size=3),
}


def check_odd(folder: Path, changes: Any, line: Any, entry: Any) -> None:
    lines, summary = run_files(3, 2)
    lines[1].update(line)
    summary["sites"][0].update(entry)
    checked(write_report(write(folder, lines, summary | changes)))
