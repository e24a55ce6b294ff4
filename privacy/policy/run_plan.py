"""The run plan: the definition of a run that a server announces once, signed, and that every node enforces.

A signed plan is sent as one blob: the server's public key (32 bytes), its signature (64), and the plan as canonical
JSON. `SignedPlan.from_bytes` reads an untrusted blob: it bounds the length, then verifies, then parses. A node pins the
plan of a run by its SHA-256 and rejects every instruction that contradicts it.
"""

import base64
import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fedglm.core.canonical_json import canonical_json, read_canonical_json
from fedglm.privacy.errors import PrivacyError, Refusal
from fedglm.privacy.keys.signing import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, PublicKey, SigningKey
from fedglm.privacy.policy.run_spec import FIELDS, RunSpec, check_count, check_name

MAX_BYTES = 65536
"""Maximum size of a signed plan; a typical one has one or two thousand bytes."""

MAX_BYTES_AS_TEXT = 4 * (MAX_BYTES // 3 + 1) + 2
"""Maximum size of a signed plan as text, with the end of its line."""

TERMS = "terms"
"""Run of a plan that is shown before any run, so that a policy can permit its terms."""

_CONTEXT = "fedglm/plan/1"
_PLAN_FIELDS = ("run", "parameters", "layout", "model", "code")
_ALL_FIELDS = FIELDS | set(_PLAN_FIELDS)
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The plan of one run: its definition, model and code.

    Attributes:
        run: Identity of the run, 1 to 200 characters.
        spec: Definition of the run, fixed from the first round to the last.
        parameters: Number of federated parameters.
        layout: SHA-256 (hex) of the model's layout: names and shapes.
        model: SHA-256 (hex) of the initial weights, version 0.
        code: SHA-256 (hex) of the code of the run: `core.code_identity.code_sha256`.

    Raises:
        PrivacyError: A field is out of its bounds; the message names it.
    """

    run: str
    spec: RunSpec
    parameters: int
    layout: str
    model: str
    code: str

    def __post_init__(self) -> None:
        check_name("run", self.run)
        check_count("parameters", self.parameters)
        for name in ("layout", "model", "code"):
            digest = getattr(self, name)
            if type(digest) is not str or not _HASH.fullmatch(digest):
                raise PrivacyError(f"run plan: {name} is a SHA-256, 64 digits 0-9 a-f")

    def to_bytes(self) -> bytes:
        """Return the plan as canonical JSON, all fields on one level; `from_bytes` makes an equal plan of it."""
        return canonical_json({name: getattr(self, name) for name in _PLAN_FIELDS} | self.spec.to_fields())

    @classmethod
    def from_bytes(cls, blob: bytes) -> "RunPlan":
        """Parse what `to_bytes` returned; nothing else is a plan.

        Raises:
            PrivacyError: `blob` is too long, not canonical JSON, or a field is missing, unknown or out of bounds.
        """
        if len(blob) > MAX_BYTES:
            raise PrivacyError(f"run plan: {len(blob)} bytes, at most {MAX_BYTES} are read")
        try:
            tree: Any = read_canonical_json(blob)
        except ValueError as exc:
            raise PrivacyError(f"run plan: {exc}") from exc
        if not isinstance(tree, dict) or tree.keys() != _ALL_FIELDS:
            unexpected = sorted(_ALL_FIELDS ^ tree.keys()) if isinstance(tree, dict) else ["no fields at all"]
            raise PrivacyError(f"run plan: missing or unknown fields: {', '.join(unexpected)[:200]}")
        spec = RunSpec.from_fields({name: value for name, value in tree.items() if name in FIELDS})
        return cls(spec=spec, **{name: tree[name] for name in _PLAN_FIELDS})

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of the canonical JSON, which ledgers record."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @cached_property
    def terms_sha256(self) -> str:
        """SHA-256 (hex) of the plan without the run's random identity, which a policy can permit in advance.

        Two runs of the same scenario, code and starting weights have the same terms.
        """
        return hashlib.sha256(b"fedglm/terms/1" + replace(self, run="-").to_bytes()).hexdigest()


@dataclass(frozen=True)
class SignedPlan:
    """A run plan with a server's signature; it cannot be constructed with a wrong signature.

    Attributes:
        plan: The plan.
        server: Public key of the server that signed; the policy decides whether it is trusted.
        signature: Signature of the plan, 64 bytes.

    Raises:
        Refusal: Rule `plan-signature`: the signature of this plan is not by this server.
    """

    plan: RunPlan
    server: PublicKey
    signature: bytes

    def __post_init__(self) -> None:
        if not self.server.verify(_CONTEXT, self.plan.to_bytes(), self.signature):
            raise Refusal("plan-signature", f"the run plan is not signed by the server key {self.server}")

    @classmethod
    def sign(cls, plan: RunPlan, key: SigningKey) -> "SignedPlan":
        """Sign a plan with a server's key."""
        return cls(plan, key.public, key.sign(_CONTEXT, plan.to_bytes()))

    def to_bytes(self) -> bytes:
        """Return the blob to send."""
        return self.server.raw + self.signature + self.plan.to_bytes()

    def to_text(self) -> str:
        """Return the blob in base64, for logs."""
        return base64.b64encode(self.to_bytes()).decode()

    @classmethod
    def from_text(cls, text: str) -> "SignedPlan":
        """Parse what `to_text` returned.

        Raises:
            ValueError: The text is not base64.
            Refusal: As `from_bytes`.
        """
        return cls.from_bytes(base64.b64decode(text))

    @classmethod
    def from_bytes(cls, blob: bytes) -> "SignedPlan":
        """Parse what `to_bytes` returned; the input may be untrusted.

        Raises:
            Refusal: Rule `plan-size`, `plan-signature` or `plan-form`; nothing of an unsigned plan is parsed.
        """
        start = PUBLIC_KEY_BYTES + SIGNATURE_BYTES
        if not start < len(blob) <= MAX_BYTES:
            raise Refusal("plan-size", f"a signed run plan has {start + 1} to {MAX_BYTES} bytes, not {len(blob)}")
        server, signature, body = PublicKey(blob[:PUBLIC_KEY_BYTES]), blob[PUBLIC_KEY_BYTES:start], blob[start:]
        if not server.verify(_CONTEXT, body, signature):
            raise Refusal("plan-signature", f"the run plan is not signed by the server key {server}")
        try:
            plan = RunPlan.from_bytes(body)
        except PrivacyError as exc:
            raise Refusal("plan-form", str(exc)) from exc
        return cls(plan, server, signature)
