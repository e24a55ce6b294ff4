"""The content of a bundle of records: which files for which role, and the largest size of each.

The list here is complete: nothing else ever gets into a bundle, no key, no salt, no state and no model. Each file is
contained whole, for records that were left out or shortened would prove nothing.

    regulator   all records, and why things were refused, in words
    auditor     all records
    public      the report alone
"""

import re
from collections.abc import Mapping
from typing import Final

from fedglm.audit.records.log_lines import LINES
from fedglm.audit.records.run_files import MAX_RESULT_BYTES, MAX_ROUNDS_BYTES
from fedglm.inference.release import manifest as light
from fedglm.privacy.custody import refusal_log
from fedglm.privacy.custody.store import LEDGER
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.log.signed_log import LOG
from fedglm.privacy.policy import policy_file
from fedglm.run_folder.names import DONE, LIGHT, ROUNDS, SCENARIO, SUMMARY

MANIFEST, SIGNATURE = "MANIFEST.json", "MANIFEST.sig"

_REPORT: Final = ("audit/report.html", "audit/report.json")
_CUSTODY_FILES: Final = (LOG, LEDGER, "policy.toml", "policy.toml.sig")
_LIGHT: Final = (f"{LIGHT}/{light.MANIFEST}", f"{LIGHT}/{light.SIGNATURE}")
"""What the server's log names of a light release; the model itself is in no bundle."""
_REFUSALS: Final = ("refusals.jsonl", "refusals.counts.json")
_RECORDS: Final = (
    *_REPORT, "audit/log.sqlite", "audit/canaries.json", "audit/attack.json", ROUNDS, SUMMARY, DONE, SCENARIO,
    *_LIGHT,
    *(f"nodes/*/custody/{name}" for name in _CUSTODY_FILES), *(f"custody/{name}" for name in _CUSTODY_FILES),
)  # fmt: skip
ROLES: Final[dict[str, tuple[str, ...]]] = {
    "regulator": (*_RECORDS, *(f"{place}{name}" for place in ("nodes/*/custody/", "custody/") for name in _REFUSALS)),
    "auditor": _RECORDS,
    "public": _REPORT,
}
"""Files that each role may read: patterns of paths in the folder of a run or a site."""

PUBLIC: Final = "public"

MAX_FILES: Final = 100_000
"""Seven for each of fourteen thousand sites."""
MAX_LISTED: Final = MAX_FILES * 256
"""Bytes of a list of all files: for each its name, its hash, and the archive's headers."""
_MAX_ENTRIES: Final = 10**6
_ENTRY_BYTES: Final = 1280
"""Bytes of a log's entry with its overhead in the file; an entry about a release has about 900."""
_MAX_LOG: Final = _MAX_ENTRIES * _ENTRY_BYTES
MAX_BYTES: Final = 3 * _MAX_LOG
"""Log, lines and ledger of a site with a million entries, or as much for many sites."""
BASE_BYTES: Final = 16 * 2**20
MAX_RATIO: Final = 50
"""Largest size of a bundle's files, relative to its archive, beyond `BASE_BYTES`. Entries are full of hashes, which do
not compress, so that a log shrinks to a tenth; a report's list of releases, with one hash each, to a twentieth.
"""

_MAX_BYTES_BY_NAME: Final[Mapping[str, int]] = {
    **dict.fromkeys((LOG, LINES, LEDGER, "report.json"), _MAX_LOG),
    ROUNDS: MAX_ROUNDS_BYTES,
    **dict.fromkeys(("policy.toml", "policy.toml.sig"), policy_file.MAX_BYTES),
    light.MANIFEST: light.MAX_MANIFEST_BYTES,
    **dict.fromkeys(_REFUSALS, 2 * refusal_log.MAX_BYTES),  # the last line may begin just before the limit
}


def _compile_names(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Compile the patterns of paths, with the lines beside each log."""
    lines = [pattern.removesuffix(LOG) + LINES for pattern in patterns if pattern.endswith(LOG)]
    return re.compile("|".join(re.escape(pattern).replace(r"\*", r"[^/\\]+") for pattern in (*patterns, *lines)))


_NAMES: Final = {role: _compile_names(patterns) for role, patterns in ROLES.items()}


def check_name(name: str, role: str) -> None:
    """Refuse a file that no bundle for that role contains.

    Any other file beside a log, such as a journal, would be trusted when the log is opened.

    Args:
        name: Path of the file in the bundle.
        role: One of `ROLES`.

    Raises:
        PrivacyError: The role's bundles contain no such file.
    """
    malformed = not name.isprintable() or ".." in name.split("/") or "." in name.split("/")
    if malformed or not _NAMES[role].fullmatch(name):
        raise PrivacyError(f"the bundle holds a file that none may for the role {role}: {name[:100]!a}")


def get_max_bytes(name: str) -> int:
    """Return the largest size of a file, in bytes, by its name or path."""
    return _MAX_BYTES_BY_NAME.get(name.rpartition("/")[2], MAX_RESULT_BYTES)


def check_sizes(sizes: Mapping[str, int], archive: int) -> None:
    """Refuse files that are larger than records are.

    Args:
        sizes: Bytes of each file, by its name.
        archive: Bytes of the archive that they are packed in.

    Raises:
        PrivacyError: A file or all of them are too large, or there are too many.
    """
    for name, size in sizes.items():
        if size > get_max_bytes(name):
            raise PrivacyError(f"{name[:100]!a} has {size:,} bytes, and at most {get_max_bytes(name):,} are read")
    total, max_total = sum(sizes.values()), min(MAX_BYTES, BASE_BYTES + MAX_RATIO * archive)
    if len(sizes) > MAX_FILES or total > max_total:
        raise PrivacyError(
            f"the bundle holds {len(sizes):,} files of {total:,} bytes: at most {MAX_FILES:,} of {max_total:,} are "
            f"read, for an archive of {archive:,}"
        )
