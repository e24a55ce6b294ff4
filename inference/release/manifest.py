"""The manifest of a light release: every file with its hash, and what is known of the model.

Written as canonical JSON without what has its default, for each of its bytes counts in the release's size. The
signature is over these bytes, and so over every file.
"""

from __future__ import annotations

import base64
import hashlib
import re
import tomllib
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fedglm.core.canonical_json import canonical_json, read_canonical_json
from fedglm.core.validation_errors import explain
from fedglm.inference.errors import InferenceError
from fedglm.inference.release.golden import MAX_CHARACTERS, unpack_golden

SCHEMA: Final = "fedglm-light/1"
MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.sig"
WEIGHTS: Final = "weights.safetensors"
SKELETONS: Final = "skeletons.lzma"
CONFIG: Final = "config.json"
TASK: Final = "task.json"
CARD: Final = "README.md"
TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json")
REQUIRED: Final = (WEIGHTS, SKELETONS, CONFIG, TASK, CARD)
FILES: Final = (*REQUIRED, *TOKENIZER)
"""All files that a manifest may list."""
MAX_MANIFEST_BYTES: Final = 1 << 20
VERSION: Final = "version"
"""Fact, in `Facts.run`, that numbers the releases of a federation: a node takes none with a lower number."""


def hash_bytes(content: bytes) -> str:
    """Return the SHA-256 of a file as the manifest has it: base64 without padding, 43 characters."""
    return encode_hash(hashlib.sha256(content).digest())


def encode_hash(digest: bytes) -> str:
    """Return a SHA-256, 32 bytes, as the manifest has it."""
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def hash_to_hex(text: str) -> str:
    """Return a hash of `hash_bytes` as 64 hexadecimal digits, as logs have it."""
    return base64.urlsafe_b64decode(f"{text}=").hex()


def _check_hash(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{43}", text):
        raise ValueError("a SHA-256 is written as 43 characters of base64")
    return text


def _check_toml(text: str) -> str:
    try:
        tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"the settings are not TOML ({exc})") from exc
    return text


def _check_golden(text: str) -> str:
    unpack_golden(text)  # an InferenceError is a ValueError too
    return text


Hash = Annotated[str, AfterValidator(_check_hash)]
Text = Annotated[str, Field(max_length=2000)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
_STRICT: Final = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FileFact(BaseModel):
    """A file of the release.

    Attributes:
        bytes: Its length.
        sha256: Its hash, by `hash_bytes`.
    """

    model_config = _STRICT

    bytes: Count
    sha256: Hash


class Measure(BaseModel):
    """What was measured of the model.

    Attributes:
        name: What, with its unit where it has one, as ``perplexity`` or ``decode, ms a token``.
        value: Of the light model.
        n: Number of examples, tokens or runs behind it.
        seed: Seed of their choice.
        reference: Of the model that was made light; None where it was not measured.
        control: Of the equally trained dense control; None where it was not measured.
    """

    model_config = _STRICT

    name: Text
    value: float
    n: Count
    seed: Count
    reference: float | None = None
    control: float | None = None


class Privacy(BaseModel):
    """The privacy of the training run; making a model light costs none (post-processing).

    Attributes:
        epsilon: Greatest epsilon over the sites.
        delta: Its delta.
        unit: Whom it protects, as ``record`` or ``patient``.
    """

    model_config = _STRICT

    epsilon: Annotated[float, Field(ge=0)]
    delta: Annotated[float, Field(ge=0, le=1)]
    unit: Text


class Facts(BaseModel):
    """What is known of a light model, beside its files.

    Attributes:
        name: Name of the model.
        run: The run that trained it, by name of the fact, as ``model_sha256`` or ``rounds``.
        privacy: Its differential privacy; None for a run without.
        settings: Settings of the search that made it light, TOML.
        calibration_sha256: Hash of the text that it was calibrated and distilled on, by `hash_bytes`; None for none.
        measures: What was measured.
        not_measured: What was not.
        limits: What the model must not be used for, or does not do.
        device: The machine of the measures; None where no time was measured.
        versions: Versions of the programs that made it.
        license: SPDX identifier of its license; None where the maker states none.
    """

    model_config = _STRICT

    name: Text
    run: dict[Text, Text | Count | float] = Field(default={}, max_length=100)
    privacy: Privacy | None = None
    settings: Annotated[str, Field(max_length=100_000), AfterValidator(_check_toml)] = ""
    calibration_sha256: Hash | None = None
    measures: tuple[Measure, ...] = Field(default=(), max_length=200)
    not_measured: tuple[Text, ...] = Field(default=(), max_length=200)
    limits: tuple[Text, ...] = Field(default=(), max_length=200)
    device: Text | None = None
    versions: dict[Text, Text] = Field(default={}, max_length=100)
    license: Text | None = None


class Manifest(BaseModel):
    """The content of ``manifest.json``.

    Attributes:
        fedglm_schema: Version of the format.
        parameters: Number of parameters of the light model.
        reference_parameters: Number of parameters of the model that was made light, a tied output layer counted once.
        files: All files but the manifest and its signature, by name.
        skeletons: Bytes of each graph's skeleton, unpacked, in the order of `SKELETONS`.
        facts: What is known of the model.
        golden: What the model says to a few prompts, by `pack_golden`; empty for a release that has none.
    """

    model_config = _STRICT

    fedglm_schema: Literal["fedglm-light/1"]
    parameters: Count
    reference_parameters: Count
    files: dict[Literal[FILES], FileFact]  # type: ignore[valid-type]  # checkers want the names spelled again
    skeletons: dict[Annotated[str, Field(pattern="^[a-z]{1,20}$")], Count] = Field(max_length=10)
    facts: Facts
    golden: Annotated[str, Field(max_length=MAX_CHARACTERS), AfterValidator(_check_golden)] = ""

    @property
    def version(self) -> int | None:
        """Number of the release in its federation, which the signature covers; None where none was given."""
        number = self.facts.run.get(VERSION)
        return number if isinstance(number, int) else None

    def to_bytes(self) -> bytes:
        """Return the bytes of the file, which are what is signed."""
        return canonical_json(self.model_dump(mode="json", exclude_defaults=True))

    @classmethod
    def from_bytes(cls, blob: bytes) -> Manifest:
        """Parse an untrusted manifest.

        Raises:
            InferenceError: It is none, of another version, or lacks a file.
        """
        try:
            fields: Any = read_canonical_json(blob)
            manifest = cls.model_validate_json(blob)
        except ValidationError as exc:
            if isinstance(fields, dict) and fields.get("fedglm_schema") != SCHEMA:
                raise InferenceError(f"{MANIFEST} is no manifest of {SCHEMA}: a newer fedglm may read it") from exc
            raise InferenceError(f"{MANIFEST}: {explain(exc, cls)}"[:300]) from exc
        except (ValueError, RecursionError) as exc:
            raise InferenceError(f"{MANIFEST} is damaged: {exc}"[:300]) from exc
        if missing := sorted(set(REQUIRED) - manifest.files.keys()):
            raise InferenceError(f"{MANIFEST} lists no {missing[0]}")
        if manifest.to_bytes() != blob:
            raise InferenceError(f"{MANIFEST} is not written as fedglm writes it")
        return manifest
