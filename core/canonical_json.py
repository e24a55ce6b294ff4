"""Canonical JSON: one text for one value, so that a hash or a signature over it means the value."""

import json
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> bytes:
    """Return `value` as JSON in UTF-8: keys sorted, no spaces, floats in Python's shortest form.

    Raises:
        ValueError: A number is not finite, or a string is not valid Unicode.
        TypeError: The value has a type that JSON does not have.
    """
    return _ENCODER.encode(value).encode()


def read_canonical_json(blob: bytes) -> Any:
    """Parse untrusted canonical JSON; the caller has to bound the length of `blob`.

    Raises:
        ValueError: `blob` is not JSON, or not in the one form that `canonical_json` writes: a key occurs twice, there
            is a space, or a number is written in another form.
    """
    try:
        value = json.loads(blob.decode())
        again = canonical_json(value)
    except (ValueError, RecursionError) as exc:
        raise ValueError("not JSON") from exc
    if again != blob:
        raise ValueError("not canonical JSON: keys in order and once, no spaces, numbers in their shortest form")
    return value
