"""A validation's file is read if a device that is trusted signed each byte of it, and in no other case."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.core.canonical_json import canonical_json
from fedglm.inference.device.processor import Processor
from fedglm.inference.errors import InferenceError
from fedglm.inference.release.trust import Trust
from fedglm.inference.validation.validation import Check, DeviceFacts, Validation, read_validation, sign_validation
from fedglm.privacy.keys.signing import SigningKey

KEY = SigningKey.generate()
CONTEXT = "fedglm/light-validation/1"
MADE = Validation(
    made="2027-01-01T00:00:00+00:00",
    fedglm="0.1.0",
    manifest_sha256="a" * 43,
    signer=None,
    verified=False,
    device=DeviceFacts(
        system="Linux 6",
        runtime="1.32.0",
        processor=Processor(name="x", architecture="aarch64", features={}, cores=2.0, cache_bytes=0),
        memory_bytes=2**30,
        threads=1,
    ),
    checks=(Check(name="signature and hashes", passed=False, detail="damaged"),),
    use=None,
)
BLOB = sign_validation(MADE, KEY)


def test_what_a_device_signed_is_read():
    read = read_validation(BLOB, trust=Trust.in_keys([KEY.public]))
    assert read == (MADE, KEY.public, True)
    assert read_validation(BLOB, trust=Trust.unverified()) == (MADE, KEY.public, False)
    assert not MADE.passed


def test_a_foreign_device_is_refused():
    with pytest.raises(InferenceError, match="whom you do not trust"):
        read_validation(BLOB, trust=Trust.in_keys([SigningKey.generate().public]))


@pytest.mark.parametrize("trust", [Trust.in_keys([KEY.public]), Trust.unverified()])
def test_another_result_is_refused_whatever_the_trust(trust):
    fields = json.loads(BLOB)
    fields["validation"]["checks"][0]["passed"] = True
    with pytest.raises(InferenceError, match=r"is not what .* signed"):
        read_validation(canonical_json(fields), trust=trust)
    with pytest.raises(InferenceError, match=r"is not what .* signed"):
        read_validation(canonical_json(json.loads(BLOB) | {"more": 1}), trust=trust)


@given(at=st.integers(0, len(BLOB) - 1), value=st.integers(0, 255))
def test_no_changed_byte_is_read(at, value):
    changed = BLOB[:at] + bytes([value]) + BLOB[at + 1 :]
    if changed != BLOB:
        with pytest.raises(InferenceError) as caught:
            read_validation(changed, trust=Trust.unverified())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "blob", [b"", b"{}", b"[]", b"null", b'{"key":1}', b"\xff", b"9" * 70_000, b'{"key":"","signature":"zz"}']
)
def test_other_files_are_refused(blob):
    with pytest.raises(InferenceError):
        read_validation(blob, trust=Trust.unverified())


@pytest.mark.parametrize("fields", [MADE.model_dump(mode="json") | {"fedglm_schema": "fedglm-validation/2"}, []])
def test_a_newer_version_is_named(fields):
    signature = KEY.sign(CONTEXT, canonical_json(fields)).hex()
    blob = canonical_json({"key": KEY.public.hex, "signature": signature, "validation": fields})
    with pytest.raises(InferenceError, match="a newer fedglm"):
        read_validation(blob, trust=Trust.unverified())
