"""What a bundle of records holds: which files for whom, and how long each may be.

What a bundle holds is listed here, by role; nothing else ever gets in, no key, no salt, no state and no model. Each
file is in it whole: records that were left out or shortened would prove nothing.

    regulator   all records, and why things were refused, in words
    auditor     all records
    public      the report alone
"""

import re
from collections.abc import Mapping
from typing import Final

from fedglm.audit.records.log_lines import LINES
from fedglm.audit.records.run_files import DONE, MAX_RESULT_BYTES, MAX_ROUNDS_BYTES, ROUNDS, SUMMARY
from fedglm.privacy.custody import refusal_log
from fedglm.privacy.custody.store import LEDGER
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.log.signed_log import LOG
from fedglm.privacy.policy import policy_file

MANIFEST, SIGNATURE = "MANIFEST.json", "MANIFEST.sig"

_REPORT: Final = ("audit/report.html", "audit/report.json")
_CUSTODY: Final = (LOG, LEDGER, "policy.toml", "policy.toml.sig")
_WORDS: Final = ("refusals.jsonl", "refusals.counts.json")
_RECORDS: Final = (
    *_REPORT, "audit/log.sqlite", "audit/canaries.json", "audit/attack.json", ROUNDS, SUMMARY, DONE, "scenario.toml",
    *(f"nodes/*/custody/{name}" for name in _CUSTODY), *(f"custody/{name}" for name in _CUSTODY),
)  # fmt: skip
ROLES: Final[dict[str, tuple[str, ...]]] = {
    "regulator": (*_RECORDS, *(f"{place}{name}" for place in ("nodes/*/custody/", "custody/") for name in _WORDS)),
    "auditor": _RECORDS,
    "public": _REPORT,
}
"""Who may read what: patterns of paths in a run's folder or a site's."""

PUBLIC: Final = "public"

MAX_FILES: Final = 100_000
"""Seven of each of fourteen thousand sites."""
MAX_LISTED: Final = MAX_FILES * 256
"""Bytes of a list of all of them: each name, its hash, and what stands around both."""
_MAX_ENTRIES: Final = 10**6
_ENTRY: Final = 1280
"""Bytes of an entry of a log and its place in the file; one about a release has some 900."""
_MAX_LOG: Final = _MAX_ENTRIES * _ENTRY
MAX_BYTES: Final = 3 * _MAX_LOG
"""Log, lines and ledger of a site with a million entries, or as much of many sites."""
SLACK: Final = 16 * 2**20
RATIO: Final = 50
"""A bundle has at most `SLACK` bytes and so many times its archive's: entries are full of hashes, which get no shorter,
so that a log comes to a tenth; a report's list of releases, with one hash each, to a twentieth."""

_MAX_OF: Final[Mapping[str, int]] = {
    **dict.fromkeys((LOG, LINES, LEDGER, "report.json"), _MAX_LOG),
    ROUNDS: MAX_ROUNDS_BYTES,
    **dict.fromkeys(("policy.toml", "policy.toml.sig"), policy_file.MAX_BYTES),
    **dict.fromkeys(_WORDS, 2 * refusal_log.MAX_BYTES),  # the last line may begin right before the limit
}


def _names(patterns: tuple[str, ...]) -> re.Pattern[str]:
    lines = [pattern.removesuffix(LOG) + LINES for pattern in patterns if pattern.endswith(LOG)]
    return re.compile("|".join(re.escape(pattern).replace(r"\*", r"[^/\\]+") for pattern in (*patterns, *lines)))


_NAMES: Final = {role: _names(patterns) for role, patterns in ROLES.items()}


def check_name(name: str, role: str) -> None:
    """Refuse a file that no bundle for that role holds.

    Whatever else there is beside a log, a journal say, would be believed when the log is opened.

    Raises:
        PrivacyError: It is such a file.
    """
    odd = not name.isprintable() or ".." in name.split("/") or "." in name.split("/")
    if odd or not _NAMES[role].fullmatch(name):
        raise PrivacyError(f"the bundle holds a file that none may for the role {role}: {name[:100]!a}")


def max_of(name: str) -> int:
    """How many bytes the file of that name may have."""
    return _MAX_OF.get(name.rpartition("/")[2], MAX_RESULT_BYTES)


def check_sizes(sizes: Mapping[str, int], archive: int) -> None:
    """Refuse what is longer than records are.

    Args:
        sizes: Bytes of each file, by its name.
        archive: Bytes of the archive that they are packed in.

    Raises:
        PrivacyError: It is.
    """
    for name, size in sizes.items():
        if size > max_of(name):
            raise PrivacyError(f"{name[:100]!a} has {size:,} bytes, and at most {max_of(name):,} are read")
    total, most = sum(sizes.values()), min(MAX_BYTES, SLACK + RATIO * archive)
    if len(sizes) > MAX_FILES or total > most:
        raise PrivacyError(
            f"the bundle holds {len(sizes):,} files of {total:,} bytes: at most {MAX_FILES:,} of {most:,} are read, "
            f"for an archive of {archive:,}"
        )
