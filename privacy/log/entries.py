"""What may stand in a signed log: kinds of entries, and for each the fields that it has, all of them and no others.

No field can hold a record or a word of one: fields are hashes, keys, signatures, whole numbers, numbers that were
charged for, names that people gave to sites and data sets, names of rules and codecs, and signed plans and policies.
Reasons in words stay in the site's `refusals.jsonl`.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from fedglm.core.canonical_json import canonical_json, read_canonical_json
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.errors import PrivacyError

PURPOSES: Final = ("update", "metrics")
"""What a release is: the update of a round, or numbers about the site's data."""

MAX_BYTES: Final = 1 << 18
"""Longest entry; only plans and policies have more than some hundred bytes."""

ROLES: Final = ("site", "server")
"""Whose a log is."""

FAULTS: Final = ("refused", "failed", "malformed", "unsigned", "late")
"""Why a server does not take an update: the site's policy refuses; the node failed; what came is no update; it is not
signed by the site; nothing came in time."""

CHARGES: Final = ("release", "charged")
"""Kinds of entries about a row of the ledger."""

TIME: Final = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\+00:00"
"""Expression for a moment as entries and rows tell it."""

_Check = Callable[[Any], bool]

_SHA256 = re.compile(r"[0-9a-f]{64}").fullmatch
_SIGNATURE = re.compile(r"[0-9a-f]{128}").fullmatch
_TIME = re.compile(TIME).fullmatch
_WORD = re.compile(r"[a-z0-9][a-z0-9-]{0,63}").fullmatch
_ANCHOR = re.compile(r"[0-9]{1,9}:[0-9a-f]{32}").fullmatch
_ID = re.compile(r"[0-9a-f]{32}").fullmatch
_NONCE = re.compile(r"[0-9a-f]{16}").fullmatch
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}").fullmatch
_MOST = 2**63


def _text(pattern: Callable[[str], object]) -> _Check:
    return lambda value: type(value) is str and pattern(value) is not None


def _name(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= 200 and value.isprintable()


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _number(value: Any) -> bool:
    return type(value) in (float, int) and math.isfinite(value)


def _one_of(*words: str) -> _Check:
    return lambda value: value in words


def _or_none(check: _Check) -> _Check:
    return lambda value: value is None or check(value)


def _words(value: Any) -> bool:
    return type(value) is list and len(value) <= 100 and all(type(word) is str and _WORD(word) for word in value)


def _mechanism(value: Any) -> bool:
    if type(value) is not dict or any(type(found) not in (str, int, float) for found in value.values()):
        return False
    return _is_mechanism(tuple(value.items()), tuple(map(type, value.values())))


@lru_cache(maxsize=64)
def _is_mechanism(items: tuple[tuple[str, Any], ...], _: tuple[type, ...]) -> bool:
    """Cached, for the entries of a run have one; 1 and 1.0 are one key to a cache, but not here."""
    try:
        Mechanism.from_fields(dict(items))
    except PrivacyError:
        return False
    return True


def _measures(value: Any) -> bool:
    return type(value) is dict and value.keys() == {"loss", "metric", "count"} and all(map(_number, value.values()))


def _policy(value: Any) -> bool:
    from fedglm.privacy.policy.policy import Policy  # pydantic is slow to load, and a server's log has none of these

    try:
        Policy.model_validate(value)
    except ValueError:
        return False
    return True


sha256, signature, time, anchor = _text(_SHA256), _text(_SIGNATURE), _text(_TIME), _text(_ANCHOR)
word, signed_plan, nonce, attempt = _text(_WORD), _text(_BASE64), _text(_NONCE), _text(_ID)
_checkpoint: dict[str, _Check] = {"size": _whole, "root": sha256, "made": time, "signature": signature}
_of_round: dict[str, _Check] = {"run": _name, "round": _whole}
_charge: dict[str, _Check] = {
    **_of_round,
    "row": _whole,
    "row_hash": sha256,
    "data_set": _name,
    "commitment": sha256,
    "purpose": _one_of(*PURPOSES),
    "mechanism": _or_none(_mechanism),
    "plan": sha256,
    "policy": sha256,
    "release": sha256,
    "epsilon": _or_none(_number),
    "delta": _or_none(_number),
}

KINDS: Final[dict[str, dict[str, _Check]]] = {
    # Of both sides.
    "opened": {"role": _one_of(*ROLES), "name": _name, "key": sha256, "software": _name},
    "key": {"key": sha256, "previous": sha256, "vouched": _or_none(signature)},
    "witnessed": {"run": _name, "log": sha256, "name": _name, "key": sha256, **_checkpoint},
    "countersigned": {**_checkpoint, "by": sha256, "countersignature": signature},
    # Of a site.
    "policy": {"policy": sha256, "content": _policy},
    "plan": {"plan": sha256, "server": sha256, "signed": signed_plan, "rules": _words},
    "release": {**_charge, "bytes": _whole, "non_zeros": _or_none(_whole), "codec": _or_none(word), "rules": _words},
    "charged": _charge,
    "resent": {**_of_round, "release": sha256, "bytes": _whole},
    "refused": {**_of_round, "rule": word},
    "link": {"tls": _name, "certificate": sha256, "authority": sha256},
    # Of a server.
    "announced": {"run": _name, "plan": sha256, "signed": signed_plan},
    "begun": _of_round,
    "admitted": {"run": _name, "site": _name, "key": _or_none(sha256)},
    "declined": {"run": _name, "rule": word, "node": _whole},
    "accepted": {
        **_of_round,
        "site": _name,
        "release": sha256,
        "bytes": _whole,
        "nonce": nonce,
        "anchor": _or_none(anchor),
        "measures": _or_none(_measures),
        "signature": _or_none(signature),
    },
    "rejected": {**_of_round, "site": _name, "fault": _one_of(*FAULTS), "rule": _or_none(word)},
    "published": {
        **_of_round,
        "model": sha256,
        "accepted": _whole,
        "rejected": _whole,
        "uplink_bytes": _whole,
        "downlink_bytes": _whole,
    },
    "finished": {"run": _name, "rounds": _whole, "model": sha256},
}
"""Kinds of entries and their fields, beside `number`, `time` and `kind`, which each has."""

OPTIONAL: Final[dict[str, dict[str, _Check]]] = {
    "release": {"id": attempt},
    "charged": {"id": attempt},
    "admitted": {"anchor": anchor},
    "published": {"row": sha256},
}
"""Fields that entries of a kind may lack, as those of earlier versions do; one that is there says something."""

_FRAME: Final[dict[str, _Check]] = {"number": _whole, "time": time, "kind": word}
_FIELDS: Final = {kind: {**_FRAME, **own} for kind, own in KINDS.items()}
_NO_FIELDS: Final[dict[str, _Check]] = {}


def entry(number: int, moment: str, kind: str, fields: Mapping[str, Any]) -> bytes:
    """An entry's text, canonical JSON.

    Args:
        number: From 1.
        moment: When: UTC, ISO 8601 to the second.
        kind: One of `KINDS`.
        fields: Its fields.

    Raises:
        PrivacyError: The kind is unknown, or a field is missing, unknown, or not what its kind may hold.
    """
    whole = {"number": number, "time": moment, "kind": kind, **fields}
    _check(whole)
    return canonical_json(whole)


def read_entry(content: bytes, number: int) -> dict[str, Any]:
    """The fields of an entry, from a stranger too.

    Args:
        content: Its text.
        number: That it must have.

    Raises:
        PrivacyError: It is none.
    """
    if len(content) > MAX_BYTES:
        raise PrivacyError(f"its text has {len(content)} bytes, at most {MAX_BYTES} are read")
    try:
        whole = read_canonical_json(content)
    except ValueError as exc:
        raise PrivacyError(f"its text is {exc}") from exc
    if type(whole) is not dict:
        raise PrivacyError("its text is no entry")
    _check(whole)
    if whole["number"] != number:
        raise PrivacyError(f"its text says that it is entry {whole['number']}")
    if (whole["kind"] == "opened") != (number == 1):
        raise PrivacyError("a log is opened once, by its first entry")
    return whole


def _check(whole: dict[str, Any]) -> None:
    kind = whole.get("kind")
    fields = _FIELDS.get(kind) if type(kind) is str else None
    if fields is None:
        raise PrivacyError(f"no entry is of kind {str(kind)[:40]!r}")
    optional = OPTIONAL.get(whole["kind"], _NO_FIELDS)
    if odd := (whole.keys() ^ fields.keys()) - optional.keys():
        names = ", ".join(sorted(str(name)[:40] for name in odd)[:8])
        raise PrivacyError(f"an entry of kind {kind} has missing or unknown fields: {names}")
    for name, value in whole.items():
        if not (fields.get(name) or optional[name])(value):
            raise PrivacyError(f"an entry of kind {kind} cannot hold that in its field {name}")
