"""The validation of a release on a device: what was checked and measured there, as a signed file.

The file is canonical JSON: the validation, the device's public key, and its Ed25519 signature over
``fedglm/light-validation/1``, a zero byte, and the validation in canonical JSON. It has nothing of the node's data.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedglm.core.canonical_json import canonical_json, read_canonical_json
from fedglm.core.processes.control_groups import read_memory_limit
from fedglm.core.validation_errors import explain
from fedglm.inference.device.processor import Processor, read_processor
from fedglm.inference.errors import InferenceError
from fedglm.inference.release.manifest import Hash
from fedglm.inference.release.trust import Signer, Trust
from fedglm.inference.validation.use import Use
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey

SCHEMA: Final = "fedglm-validation/1"
MAX_BYTES: Final = 1 << 16
_CONTEXT: Final = "fedglm/light-validation/1"
_STRICT: Final = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
_Hex = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Check(BaseModel):
    """A check.

    Attributes:
        name: What is checked.
        passed: Whether it holds; None where it could not be made.
        detail: What was found, in a line.
    """

    model_config = _STRICT

    name: str = Field(max_length=40)
    passed: bool | None
    detail: str = Field(max_length=400)


class DeviceFacts(BaseModel):
    """The device.

    Attributes:
        system: Operating system and its release.
        runtime: Version of ONNX Runtime.
        processor: The processor.
        memory_bytes: Memory that the process may take.
        threads: Number of threads of a run.
    """

    model_config = _STRICT

    system: str = Field(max_length=200)
    runtime: str = Field(max_length=40)
    processor: Processor
    memory_bytes: int = Field(gt=0)
    threads: int = Field(ge=1)


class Validation(BaseModel):
    """What a device found of a release.

    Attributes:
        fedglm_schema: Version of the format.
        made: Date and time, ISO 8601, UTC.
        fedglm: Version of the program.
        manifest_sha256: Hash of the release's manifest, by `hash_bytes`; None where it could not be read.
        signer: Public key of who signed the release, 64 digits; None for nobody, or where that was not found out.
        verified: Whether that is somebody whom the device trusts; if not, nobody vouches for the release.
        device: The device.
        checks: What was checked; after one that the rest depends on has failed, no more.
        use: What the release costs; None where it could not be used.
    """

    model_config = _STRICT

    fedglm_schema: Literal["fedglm-validation/1"] = SCHEMA
    made: str = Field(max_length=40)
    fedglm: str = Field(max_length=40)
    manifest_sha256: Hash | None
    signer: _Hex | None
    verified: bool
    device: DeviceFacts
    checks: tuple[Check, ...] = Field(max_length=40)
    use: Use | None

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    @property
    def first_failure(self) -> str | None:
        """The first check that failed, with what was found; None where none did."""
        return next((f"{check.name}: {check.detail}" for check in self.checks if check.passed is False), None)


def conclude(
    manifest: str,
    checks: Sequence[Check],
    *,
    runtime: str,
    threads: int,
    signer: PublicKey | None = None,
    verified: bool = False,
    use: Use | None = None,
) -> Validation:
    """Make the validation of what this device has found now; ONNX Runtime is not loaded for it.

    Args:
        manifest: As in `Validation`.
        checks: As in `Validation`.
        runtime: Version of ONNX Runtime.
        threads: Number of threads of a run.
        signer: Who signed the release; None for nobody, or where that was not found out.
        verified: As in `Validation`.
        use: As in `Validation`.
    """
    return Validation(
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        fedglm=version("fedglm"),
        manifest_sha256=manifest,
        signer=None if signer is None else signer.hex,
        verified=verified,
        device=DeviceFacts(
            system=f"{platform.system()} {platform.release()}",
            runtime=runtime,
            processor=read_processor(),
            memory_bytes=read_memory_limit(),
            threads=threads,
        ),
        checks=tuple(checks),
        use=use,
    )


class SignedValidation(NamedTuple):
    """A validation whose signature was checked.

    Attributes:
        validation: The validation.
        device_key: Who signed it.
        verified: Whether the reader trusts that key.
    """

    validation: Validation
    device_key: PublicKey
    verified: bool


def sign_validation(validation: Validation, key: Signer) -> bytes:
    """Return the content of a validation's file.

    Args:
        validation: The validation.
        key: The device's own key.
    """
    fields = validation.model_dump(mode="json")
    signature = key.sign(_CONTEXT, canonical_json(fields))
    return canonical_json({"key": key.public.hex, "signature": signature.hex(), "validation": fields})


def read_validation(blob: bytes, *, trust: Trust) -> SignedValidation:
    """Read an untrusted validation's file.

    Args:
        blob: Its content.
        trust: The devices whose validations count.

    Raises:
        InferenceError: It is none, of another version, its signature is wrong, or the device is not trusted.
    """
    if len(blob) > MAX_BYTES:
        raise InferenceError(f"a validation has at most {MAX_BYTES} bytes, not {len(blob)}")
    try:
        fields: Any = read_canonical_json(blob)
        key, signature = PublicKey.from_hex(fields["key"]), bytes.fromhex(fields["signature"])
        signed = canonical_json(fields["validation"])
    except (ValueError, KeyError, TypeError, PrivacyError) as exc:
        raise InferenceError("this is no signed validation of a release: it is damaged, or another file") from exc
    if trust.verifies and key not in trust.keys:
        raise InferenceError(f"the validation is signed by {key.fingerprint()}, whom you do not trust")
    if len(fields) != 3 or not key.verify(_CONTEXT, signed, signature):
        raise InferenceError(f"the validation is not what {key.fingerprint()} signed")
    try:
        validation = Validation.model_validate_json(signed)
    except ValidationError as exc:
        schema = fields["validation"].get("fedglm_schema") if isinstance(fields["validation"], dict) else None
        if schema != SCHEMA:
            raise InferenceError(f"the validation is not of {SCHEMA}: a newer fedglm may read it") from exc
        raise InferenceError(f"the validation: {explain(exc, Validation)}"[:300]) from exc
    return SignedValidation(validation, key, trust.verifies)
