"""The signed manifest of the model that a run ends with: what it is, so that a site knows what it holds.

Its text is canonical JSON of the fields, the server's public key and the signature.
"""

import hashlib
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fedglm.core.canonical_json import canonical_json, read_canonical_json
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey, SigningKey

MAX_MANIFEST: Final = 4096
"""Maximum characters of a manifest's text."""

_CONTEXT: Final = "fedglm/model/1"


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("printable characters expected")
    return text


_Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_printable)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class ModelManifest(BaseModel):
    """What the server says of a model.

    Attributes:
        format: Version of the manifest.
        run: Identity of the run.
        name: Name of the run's folder at the server.
        rounds: Number of rounds that it was trained for.
        model_sha256: SHA-256 (hex) of the federated parameters, as one vector of little-endian float32.
        layout: SHA-256 (hex) of the parameters' names and shapes.
        parameters: Number of federated parameters.
        loss: Loss that the server measured, in nats; None where it measured none.
        metric: Name of the other measure, `accuracy` or `perplexity`.
        value: The other measure; None where the server measured none.
        epsilon: Epsilon that each unit at a site is protected by in the run; None without differential privacy.
        delta: Its delta; None without differential privacy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    run: _Name
    name: _Name
    rounds: int = Field(ge=1, lt=2**31)
    model_sha256: _Sha256
    layout: _Sha256
    parameters: int = Field(ge=1, le=2**40)
    loss: _Number | None = None
    metric: _Name
    value: _Number | None = None
    epsilon: _Number | None = None
    delta: _Number | None = None

    def sign(self, key: SigningKey) -> str:
        """Return the signed text."""
        content = self.model_dump() | {"server": key.public.hex}
        return canonical_json(content | {"signature": key.sign(_CONTEXT, canonical_json(content)).hex()}).decode()

    @classmethod
    def read(cls, text: str, servers: Iterable[PublicKey]) -> Self:
        """Read an untrusted text, and check that one of the servers signed it.

        Raises:
            PrivacyError: It is malformed, or none of them signed it.
        """
        content = _parse(text)
        signature, server = content.pop("signature", None), content.get("server")
        known = {key.hex: key for key in servers}
        if not isinstance(signature, str) or not isinstance(server, str) or server not in known:
            raise PrivacyError("the model's manifest is not signed by the server of the startup kit")
        try:
            is_signed = known[server].verify(_CONTEXT, canonical_json(content), bytes.fromhex(signature))
        except ValueError:
            is_signed = False
        if not is_signed:
            raise PrivacyError("the model's manifest is not what the server of the startup kit has signed")
        try:
            return cls.model_validate({name: value for name, value in content.items() if name != "server"})
        except ValidationError as exc:
            raise PrivacyError(f"the model's manifest is malformed: {exc.error_count()} fields are wrong") from exc


def hash_text(text: str) -> str:
    """Return the SHA-256 (hex) of a manifest's text, for logs."""
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(text: str) -> dict[str, Any]:
    if len(text) > MAX_MANIFEST:
        raise PrivacyError(f"the model's manifest has more than {MAX_MANIFEST} characters")
    try:
        content = read_canonical_json(text.encode())
    except ValueError as exc:
        raise PrivacyError(f"the model's manifest is {exc}") from exc
    if not isinstance(content, dict):
        raise PrivacyError("the model's manifest is malformed: it has no fields")
    return content
