"""The entries of a signed log: their kinds, and for each kind its required fields; no others are accepted.

No field can hold a record or a word of one: fields are hashes, keys, signatures, integers, numbers that were charged
for, names that people gave to sites and data sets, names of rules and codecs, and signed plans and policies. Reasons in
words stay in the site's `refusals.jsonl`.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from fedglm.core.canonical_json import canonical_json, read_canonical_json
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.log.chained_file import is_sha256

PURPOSES: Final = ("update", "metrics")
"""Purposes of a release: the update of a round, or numbers about the site's data."""

MAX_BYTES: Final = 1 << 18
"""Maximum size of an entry; only plans and policies have more than some hundred bytes."""

ROLES: Final = ("site", "server")
"""Roles of a log's owner."""

FAULTS: Final = ("refused", "failed", "malformed", "unsigned", "late")
"""Reasons why a server does not accept an update: the site's policy refuses; the node failed; the reply is no update;
it is not signed by the site; no reply came in time."""

CHARGES: Final = ("release", "charged")
"""Kinds of entries of a row of the ledger."""

TIME: Final = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\+00:00"
"""Regular expression of a time in entries and rows."""

FieldCheck = Callable[[Any], bool]
"""Returns whether a value may be in a field."""

_COUNT_LIMIT = 2**63


def _matches(pattern: str) -> FieldCheck:
    match = re.compile(pattern).fullmatch
    return lambda value: type(value) is str and match(value) is not None


is_signature: Final = _matches(r"[0-9a-f]{128}")
is_time: Final = _matches(TIME)
is_word: Final = _matches(r"[a-z0-9][a-z0-9-]{0,63}")
is_anchor: Final = _matches(r"[0-9]{1,9}:[0-9a-f]{32}")
is_id: Final = _matches(r"[0-9a-f]{32}")
is_nonce: Final = _matches(r"[0-9a-f]{16}")
is_base64: Final = _matches(r"[A-Za-z0-9+/]+={0,2}")


def _is_name(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= 200 and value.isprintable()


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _COUNT_LIMIT


def _is_number(value: Any) -> bool:
    return type(value) in (float, int) and math.isfinite(value)


def _is_one_of(*words: str) -> FieldCheck:
    return lambda value: value in words


def _allow_none(check: FieldCheck) -> FieldCheck:
    return lambda value: value is None or check(value)


def _is_word_list(value: Any) -> bool:
    return type(value) is list and len(value) <= 100 and all(map(is_word, value))


def _is_mechanism(value: Any) -> bool:
    if type(value) is not dict or any(type(field) not in (str, int, float) for field in value.values()):
        return False
    return _is_valid_mechanism(tuple(value.items()), tuple(map(type, value.values())))


@lru_cache(maxsize=64)
def _is_valid_mechanism(items: tuple[tuple[str, Any], ...], _: tuple[type, ...]) -> bool:
    """Check a mechanism; cached, for the entries of a run share one.

    The types are a part of the key, for 1 and 1.0 are equal to a cache, but not in a mechanism.
    """
    try:
        Mechanism.from_fields(dict(items))
    except PrivacyError:
        return False
    return True


def _is_metrics(value: Any) -> bool:
    return type(value) is dict and value.keys() == {"loss", "metric", "count"} and all(map(_is_number, value.values()))


def _is_policy(value: Any) -> bool:
    from fedglm.privacy.policy.policy import Policy  # pydantic is slow to load, and a server's log has none of these

    try:
        Policy.model_validate(value)
    except ValueError:
        return False
    return True


_TREE_HEAD_FIELDS: dict[str, FieldCheck] = {
    "size": _is_count,
    "root": is_sha256,
    "made": is_time,
    "signature": is_signature,
}
_ROUND_FIELDS: dict[str, FieldCheck] = {"run": _is_name, "round": _is_count}
_CHARGE_FIELDS: dict[str, FieldCheck] = {
    **_ROUND_FIELDS,
    "row": _is_count,
    "row_hash": is_sha256,
    "data_set": _is_name,
    "commitment": is_sha256,
    "purpose": _is_one_of(*PURPOSES),
    "mechanism": _allow_none(_is_mechanism),
    "plan": is_sha256,
    "policy": is_sha256,
    "release": is_sha256,
    "epsilon": _allow_none(_is_number),
    "delta": _allow_none(_is_number),
}

KINDS: Final[dict[str, dict[str, FieldCheck]]] = {
    # In both logs.
    "opened": {"role": _is_one_of(*ROLES), "name": _is_name, "key": is_sha256, "software": _is_name},
    "key": {"key": is_sha256, "previous": is_sha256, "vouched": _allow_none(is_signature)},
    "witnessed": {"run": _is_name, "log": is_sha256, "name": _is_name, "key": is_sha256, **_TREE_HEAD_FIELDS},
    "countersigned": {**_TREE_HEAD_FIELDS, "by": is_sha256, "countersignature": is_signature},
    # In a site's log.
    "policy": {"policy": is_sha256, "content": _is_policy},
    "plan": {"plan": is_sha256, "server": is_sha256, "signed": is_base64, "rules": _is_word_list},
    "release": {
        **_CHARGE_FIELDS,
        "bytes": _is_count,
        "non_zeros": _allow_none(_is_count),
        "codec": _allow_none(is_word),
        "rules": _is_word_list,
    },
    "charged": _CHARGE_FIELDS,
    "resent": {**_ROUND_FIELDS, "release": is_sha256, "bytes": _is_count},
    "refused": {**_ROUND_FIELDS, "rule": is_word},
    "validation": {
        "run": _is_name,
        "manifest": is_sha256,
        "release": is_sha256,
        "bytes": _is_count,
        "rules": _is_word_list,
    },
    "model": {**_ROUND_FIELDS, "model": is_sha256, "manifest": is_sha256},
    "link": {"tls": _is_name, "certificate": is_sha256, "authority": is_sha256},
    # In a server's log.
    "announced": {"run": _is_name, "plan": is_sha256, "signed": is_base64},
    "begun": _ROUND_FIELDS,
    "admitted": {"run": _is_name, "site": _is_name, "key": _allow_none(is_sha256)},
    "declined": {"run": _is_name, "rule": is_word, "node": _is_count},
    "accepted": {
        **_ROUND_FIELDS,
        "site": _is_name,
        "release": is_sha256,
        "bytes": _is_count,
        "nonce": is_nonce,
        "anchor": _allow_none(is_anchor),
        "measures": _allow_none(_is_metrics),
        "signature": _allow_none(is_signature),
    },
    "rejected": {**_ROUND_FIELDS, "site": _is_name, "fault": _is_one_of(*FAULTS), "rule": _allow_none(is_word)},
    "absent": {**_ROUND_FIELDS, "site": _is_name},
    "revoked": {**_ROUND_FIELDS, "site": _is_name},
    "published": {
        **_ROUND_FIELDS,
        "model": is_sha256,
        "accepted": _is_count,
        "rejected": _is_count,
        "uplink_bytes": _is_count,
        "downlink_bytes": _is_count,
    },
    "light": {
        **_ROUND_FIELDS,
        "version": _allow_none(_is_count),
        "manifest": _allow_none(is_sha256),
        "bytes": _allow_none(_is_count),
    },
    "handed": {"run": _is_name, "site": _is_name, "version": _is_count, "manifest": is_sha256},
    "given": {"run": _is_name, "site": _is_name, "model": is_sha256, "manifest": is_sha256},
    "finished": {"run": _is_name, "rounds": _is_count, "model": is_sha256},
}
"""Kinds of entries and their fields, in addition to `number`, `time` and `kind`, which all entries have."""

OPTIONAL: Final[dict[str, dict[str, FieldCheck]]] = {
    "release": {"id": is_id},
    "charged": {"id": is_id},
    "admitted": {"anchor": is_anchor},
    "declined": {"site": _is_name},
    "published": {"row": is_sha256},
}
"""Fields that entries of a kind may lack, as those of earlier versions do; a field that is there is not null."""

_COMMON_FIELDS: Final[dict[str, FieldCheck]] = {"number": _is_count, "time": is_time, "kind": is_word}
_FIELDS: Final = {kind: {**_COMMON_FIELDS, **own} for kind, own in KINDS.items()}
_NO_FIELDS: Final[dict[str, FieldCheck]] = {}


def make_entry(number: int, moment: str, kind: str, fields: Mapping[str, Any]) -> bytes:
    """Make the text of an entry, canonical JSON.

    Args:
        number: Number of the entry, from 1.
        moment: Time of the entry: UTC, ISO 8601 to the second.
        kind: Kind of the entry, one of `KINDS`.
        fields: Fields of the kind.

    Raises:
        PrivacyError: The kind is unknown, or a field is missing, unknown, or has a value that is not permitted.
    """
    content = {"number": number, "time": moment, "kind": kind, **fields}
    _check_entry(content)
    return canonical_json(content)


def read_entry(content: bytes, number: int) -> dict[str, Any]:
    """Parse and check an entry, which may be untrusted.

    Args:
        content: Text of the entry.
        number: Number that the entry must have, from 1.

    Returns:
        All fields of the entry.

    Raises:
        PrivacyError: The text is no such entry.
    """
    if len(content) > MAX_BYTES:
        raise PrivacyError(f"its text has {len(content)} bytes, at most {MAX_BYTES} are read")
    try:
        entry = read_canonical_json(content)
    except ValueError as exc:
        raise PrivacyError(f"its text is {exc}") from exc
    if type(entry) is not dict:
        raise PrivacyError("its text is no entry")
    _check_entry(entry)
    if entry["number"] != number:
        raise PrivacyError(f"its text says that it is entry {entry['number']}")
    if (entry["kind"] == "opened") != (number == 1):
        raise PrivacyError("a log is opened once, by its first entry")
    return entry


def _check_entry(entry: dict[str, Any]) -> None:
    kind = entry.get("kind")
    fields = _FIELDS.get(kind) if type(kind) is str else None
    if fields is None:
        raise PrivacyError(f"no entry is of kind {str(kind)[:40]!r}")
    optional = OPTIONAL.get(entry["kind"], _NO_FIELDS)
    if unexpected := (entry.keys() ^ fields.keys()) - optional.keys():
        names = ", ".join(sorted(str(name)[:40] for name in unexpected)[:8])
        raise PrivacyError(f"an entry of kind {kind} has missing or unknown fields: {names}")
    for name, value in entry.items():
        if not (fields.get(name) or optional[name])(value):
            raise PrivacyError(f"an entry of kind {kind} cannot hold that in its field {name}")
