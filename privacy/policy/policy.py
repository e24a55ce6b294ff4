"""A site's policy: the releases that it permits, whatever a server requests.

A person writes it as TOML, and the site's key signs the file (`policy_file`). Whatever the policy does not permit is
refused; the rules are in `fedglm.privacy.policy.rules`.
"""

import functools
import hashlib
import textwrap
import tomllib
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from fedglm.core.validation_errors import explain
from fedglm.privacy.accounting.accountant import MAX_DELTA, MIN_DELTA
from fedglm.privacy.errors import PolicyError

ANY = "*"
"""Wildcard of a list, which must be alone in it: everything is allowed."""

_WIDTH = 100
_MAX_NUMBER = 2**53
_EXAMPLE = "0123456789abcdef" * 4
_HEAD = (
    "What this site lets out of its node, whatever a server asks.",
    "Default deny: a key that is missing, left as a comment, or empty permits nothing. The word "
    '"*", alone in a list, permits everything; nothing else is a wildcard.',
    "The node follows this file only while the site's signature over its exact bytes lies beside it (this file's name "
    "with .sig after it). After a change, even of a comment, it must be signed again.",
)


def _check_wildcard(entries: tuple[str, ...]) -> tuple[str, ...]:
    if ANY in entries and len(entries) > 1:
        raise ValueError(f'"{ANY}" permits everything: write it alone, or take it away')
    return entries


_Hash = Annotated[str, Field(pattern=r"^(\*|[0-9a-f]{64})$")]
_Name = Annotated[str, Field(pattern=r"^(\*|[a-z0-9][a-z0-9-]{0,63})$")]
_Hashes = Annotated[tuple[_Hash, ...], AfterValidator(_check_wildcard)]
_Names = Annotated[tuple[_Name, ...], AfterValidator(_check_wildcard)]


class Policy(BaseModel):
    """The permissions of a site; a permission that is not given denies.

    The description of each field says what it permits. These sentences are the comments of `to_toml`, which a
    compliance officer reads, so they are written only there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    data_set: str = Field(
        min_length=1,
        max_length=200,
        description="Name of the data set that this policy is about. The budget below is for this data set's whole "
        "life: all runs, of all servers, together.",
    )
    epsilon: float | None = Field(
        default=None,
        gt=0,
        description="Greatest epsilon, the privacy loss that all releases from this data set together may reach. Less "
        "is more private: 1 is strong, 3 to 8 is common, and above 10 little is promised.",
        examples=[8.0],
    )
    delta: float | None = Field(
        default=None,
        ge=MIN_DELTA,
        le=MAX_DELTA,
        description="Probability with which the promise of epsilon may fail. Take at most 1 / (10 x units); 1 / units "
        "or more is refused, for a release of one unit's records in full would meet it.",
        examples=[1e-6],
    )
    declare_units: int | None = Field(
        default=None,
        ge=1,
        le=_MAX_NUMBER,
        description="Number of units (see the next key) that the site makes public. Training with noise divides by it, "
        "so it shows. Choose a round number near the true one: the true count is itself private.",
        examples=[2000],
    )
    unit: str | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description='What is protected: the name of the field that says whose a record is, such as "patient_id", so '
        'that all records of a patient are protected together; or "record", where each stands for itself.',
        examples=["patient_id"],
    )
    records_per_unit_at_most: int | None = Field(
        default=None,
        ge=1,
        le=_MAX_NUMBER,
        description="Most records of one unit that a training step may look at.",
        examples=[4],
    )
    noise_multiplier_at_least: float | None = Field(
        default=None,
        gt=0,
        description="Least noise: its standard deviation as a multiple of the clipping norm. More is more private; "
        "below 0.5 single releases say much.",
        examples=[0.7],
    )
    clipping_norm_at_most: float | None = Field(
        default=None,
        gt=0,
        description="Greatest length (L2 norm) that one unit's contribution to a training step may have before noise "
        "is added.",
        examples=[1.0],
    )
    steps_at_most: int | None = Field(
        default=None,
        ge=1,
        le=_MAX_NUMBER,
        description="Most training steps a round.",
        examples=[50],
    )
    without_differential_privacy: bool = Field(
        default=False,
        description="true permits updates with no noise at all. Then epsilon promises nothing, and whoever sees an "
        "update can recover much of the text behind it. For public or synthetic data only.",
    )
    servers: _Hashes = Field(
        default=(),
        strict=False,
        description="Public keys (64 digits) of the servers whose signed run plans count.",
        examples=[[_EXAMPLE]],
    )
    plans: _Hashes = Field(
        default=(),
        strict=False,
        description="SHA-256 of the terms of the run plans that the site has agreed to: all that a plan fixes (model, "
        "data, training, noise, rounds, codec, code) but the run's random name. The server's operator hands the terms "
        'over, and fedglm client plan shows what they mean and their SHA-256. "*" takes any plan of a listed server '
        "that keeps to the other rules.",
        examples=[[_EXAMPLE]],
    )
    models: _Hashes = Field(
        default=(),
        strict=False,
        description="SHA-256 of the models that a run may start from: of its weights, to permit exactly these, which "
        "the node checks; or of a layout (names and shapes of the tensors), to permit any weights in it. Whatever a "
        "run starts from, the weights of its later rounds are what the server makes of all sites' updates, and a node "
        "cannot tell what that is: epsilon holds for any weights.",
        examples=[[_EXAMPLE]],
    )
    codecs: _Names = Field(
        default=(),
        strict=False,
        description='Names of the codecs that updates may be written in, such as "topk-sign".',
        examples=[["topk-sign", "int8"]],
    )
    bytes_at_most: int | None = Field(
        default=None,
        ge=1,
        le=_MAX_NUMBER,
        description="Most bytes of one message from the node.",
        examples=[1_000_000],
    )
    metrics: tuple[Literal["loss", "metric", "count"], ...] = Field(
        default=(),
        strict=False,
        description='What may be reported of the site\'s held-out data: "loss", "metric" (such as accuracy), "count" '
        "(number of examples). Each is a release of its own and is charged to the budget.",
        examples=[["loss"]],
    )
    light_validation: bool = Field(
        default=False,
        description="true permits to tell the server how a light release of the trained model works on this machine: "
        "whether it ran as it must, in what time and memory, and what processor and system the machine has. No record "
        "is used for it.",
    )
    state_encrypted: bool = Field(
        default=False,
        description="true refuses every plan unless the node keeps its own state, models and residuals, encrypted on "
        "its disk (site.state_key in site.toml).",
    )
    retention_days: int | None = Field(
        default=None,
        ge=1,
        le=36500,
        description="Days for which log, ledger and refusals are kept; 2190 are six years. It permits nothing: it is "
        "what the site undertakes, and what reports show. Nothing is ever deleted by itself.",
        examples=[2190],
    )

    _file_sha256: str | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _delta_protects_one(self) -> Self:
        if self.delta is not None and self.declare_units is not None and self.delta * self.declare_units >= 1:
            raise ValueError(
                f"delta {self.delta:g} with {self.declare_units} units would permit one unit's records in full: give "
                f"at most {0.1 / self.declare_units:.2g}"
            )
        return self

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the file that the policy was read from; of `to_toml` for a policy without a file."""
        return self._file_sha256 or hashlib.sha256(self.to_toml().encode()).hexdigest()

    def to_toml(self) -> str:
        """Return the policy as TOML with explanations; what is not permitted is a comment with an example."""
        return _format_policy(self)

    @classmethod
    def from_toml(cls, text: str, *, origin: str = "the policy") -> Self:
        """Parse a policy's text, signed or not.

        Args:
            text: Text of the policy, TOML.
            origin: Name of the text in errors.

        Raises:
            PolicyError: The text is not TOML, or a key or value is wrong; similar names are listed.
        """
        try:
            policy = cls.model_validate(tomllib.loads(text))
        except ValidationError as exc:
            raise PolicyError(f"{origin}: {explain(exc, cls, show=_quote)}") from exc
        except (ValueError, RecursionError) as exc:
            raise PolicyError(f"{origin} is not TOML: {exc}") from exc
        if text != policy.to_toml():  # else the hash of `to_toml` is that of the file, and equal policies stay equal
            policy._file_sha256 = hashlib.sha256(text.encode()).hexdigest()
        return policy


@functools.lru_cache(maxsize=64)  # a node needs the hash of its policy several times in a round
def _format_policy(policy: Policy) -> str:
    parts = ["\n#\n".join(_format_comment(paragraph) for paragraph in _HEAD)]
    for name, field in type(policy).model_fields.items():
        value = policy.model_dump(mode="json", include={name})
        denied = value[name] in (None, [])
        lines = [_format_comment(str(field.description))]
        if denied and field.examples:
            lines += [
                "# Not given, so nothing is permitted. For example:",
                f"#{_format_setting(name, field.examples[0])}",
            ]
        else:
            lines.append(_format_setting(name, value[name]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


@functools.cache
def _format_comment(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")


def _format_setting(name: str, value: Any) -> str:
    """Format `name = value` in TOML, a list on one line where it fits."""
    text = tomli_w.dumps({name: value}).rstrip()
    first, *entries = text.split("\n")
    if not entries:
        return text
    flat = first + ", ".join(entry.strip().rstrip(",") for entry in entries[:-1]) + entries[-1]
    return flat if len(flat) < _WIDTH else text


def _quote(value: Any) -> str:
    """Quote a value for an error line."""
    shown = hex(value) if type(value) is int and abs(value) > _MAX_NUMBER else str(value)  # str fails above 4300 digits
    return repr(shown[:100])
