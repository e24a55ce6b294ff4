"""The run plan: what a server announces once, signed, and what every node holds it to.

A signed plan travels as one blob: the server's public key (32 bytes), its signature (64), and the plan as canonical
JSON. `SignedPlan.from_bytes` reads one from a stranger: it bounds the length, then verifies, then parses. A node pins
the plan of a run by its SHA-256 and answers no instruction that says otherwise.
"""

import base64
import hashlib
import math
import re
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from fedglm.core.canonical_json import canonical_json, read_canonical_json
from fedglm.privacy.dp.mechanism import Mechanism, metrics_mechanism
from fedglm.privacy.errors import PrivacyError, Refusal
from fedglm.privacy.keys.signing import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, PublicKey, SigningKey

MAX_BYTES = 65536
"""Longest signed plan that a node reads; a usual one has one or two thousand bytes."""

MAX_BYTES_AS_TEXT = 4 * (MAX_BYTES // 3 + 1) + 2
"""Longest signed plan as text, with the end of its line."""

TERMS = "terms"
"""Name of the run of a plan that is shown before any run: a policy permits what is in it."""

_CONTEXT = "fedglm/plan/1"
_MAX_NUMBER = 2**31 - 1
_MAX_RECIPE = 20_000
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What is fixed for a whole run.

    Attributes:
        run: Identity of the run, 1 to 200 characters.
        rounds: Most rounds.
        turns: Most rounds that one node takes part in.
        local_steps: Optimizer steps a round; with a mechanism, its steps.
        mechanism: How a node adds noise; None says in so many words that it adds none.
        noise_at_most: Most noise multiplier that a node may take instead of the mechanism's, where its ledger has too
            little left for all its turns; None with no mechanism.
        metrics: How a node adds noise to what it measures on its held-out data, in each turn; with a mechanism, None
            says that it reports nothing.
        codec: Name of the codec of the updates.
        density: Share of the coordinates that travel, in (0, 1]; None where the codec has no such number.
        parameters: Number of federated parameters.
        layout: SHA-256 (hex) of the model's layout: names and shapes.
        model: SHA-256 (hex) of the weights that the run starts from, version 0.
        recipe: How model and training are made, for nodes that are not told otherwise; at most 20,000 characters.
        code: SHA-256 (hex) of the code that the run is of: `core.code_identity.code_sha256`.

    Raises:
        PrivacyError: A field is out of its bounds, or the steps contradict each other; the message names it.
    """

    run: str
    rounds: int
    turns: int
    local_steps: int
    mechanism: Mechanism | None
    noise_at_most: float | None
    metrics: Mechanism | None
    codec: str
    density: float | None
    parameters: int
    layout: str
    model: str
    recipe: str
    code: str

    def __post_init__(self) -> None:
        for name in ("run", "codec"):
            text = getattr(self, name)
            if type(text) is not str or not 0 < len(text) <= 200 or not text.isprintable():
                raise PrivacyError(f"run plan: {name} is a text of 1 to 200 printable characters")
        for name in ("rounds", "turns", "local_steps", "parameters"):
            number = getattr(self, name)
            if type(number) is not int or not 1 <= number <= _MAX_NUMBER:
                raise PrivacyError(f"run plan: {name} is a whole number from 1 to {_MAX_NUMBER}")
        for name in ("layout", "model", "code"):
            digest = getattr(self, name)
            if type(digest) is not str or not _HASH.fullmatch(digest):
                raise PrivacyError(f"run plan: {name} is a SHA-256, 64 digits 0-9 a-f")
        if self.density is not None and (type(self.density) is not float or not 0 < self.density <= 1):
            raise PrivacyError("run plan: density is a number above 0 and at most 1, or none")
        if type(self.recipe) is not str or len(self.recipe) > _MAX_RECIPE or not _is_unicode(self.recipe):
            raise PrivacyError(f"run plan: recipe is a text of at most {_MAX_RECIPE} characters")
        if self.turns > self.rounds:
            raise PrivacyError(f"run plan: {self.turns} turns in {self.rounds} rounds")
        for name in ("mechanism", "metrics"):
            if not isinstance(getattr(self, name), Mechanism | None):
                raise PrivacyError(f"run plan: {name} is a Mechanism, or none")
        self._check_noise()

    def _check_noise(self) -> None:
        mechanism, most, metrics = self.mechanism, self.noise_at_most, self.metrics
        if mechanism is None:
            if most is not None or metrics is not None:
                raise PrivacyError("run plan: noise_at_most and metrics are for a plan with a mechanism")
            return
        if mechanism.steps != self.local_steps:
            raise PrivacyError(
                f"run plan: {self.local_steps} local steps, yet the mechanism accounts for {mechanism.steps}"
            )
        if type(most) is not float or not mechanism.noise_multiplier <= most < math.inf:
            raise PrivacyError("run plan: noise_at_most is a finite float, no less than the mechanism's noise")
        if metrics is not None and metrics != metrics_mechanism(mechanism, metrics.noise_multiplier):
            raise PrivacyError("run plan: metrics look at each unit once, and at the units of the mechanism")

    def to_bytes(self) -> bytes:
        """Canonical JSON; `from_bytes` gives an equal plan."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        noise = {name: own[name] and dict(own[name].to_fields()) for name in ("mechanism", "metrics")}
        return canonical_json({**own, **noise})

    @classmethod
    def from_bytes(cls, blob: bytes) -> "RunPlan":
        """Read what `to_bytes` wrote; nothing else is a plan.

        Raises:
            PrivacyError: `blob` is too long, no canonical JSON, or a field is missing, unknown or out of bounds.
        """
        if len(blob) > MAX_BYTES:
            raise PrivacyError(f"run plan: {len(blob)} bytes, at most {MAX_BYTES} are read")
        try:
            tree: Any = read_canonical_json(blob)
        except ValueError as exc:
            raise PrivacyError(f"run plan: {exc}") from exc
        known = {field.name for field in fields(cls)}
        if not isinstance(tree, dict) or tree.keys() != known:
            odd = sorted(known ^ tree.keys()) if isinstance(tree, dict) else ["no fields at all"]
            raise PrivacyError(f"run plan: missing or unknown fields: {', '.join(odd)[:200]}")
        for name in ("mechanism", "metrics"):
            if tree[name] is not None:
                if not isinstance(tree[name], dict):
                    raise PrivacyError(f"run plan: {name} is a mapping, or null")
                tree[name] = Mechanism.from_fields(tree[name])
        return cls(**tree)

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the canonical JSON: what a ledger records."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @cached_property
    def terms_sha256(self) -> str:
        """Hex SHA-256 of the plan without the run's identity, which is random: what a policy permits beforehand.

        Two runs of the same scenario, code and starting weights have the same terms.
        """
        return hashlib.sha256(b"fedglm/terms/1" + replace(self, run="-").to_bytes()).hexdigest()


@dataclass(frozen=True)
class SignedPlan:
    """A run plan and the signature of a server under it; one whose signature is wrong cannot be made.

    Attributes:
        plan: The plan.
        server: Public key of the server that signed; whether it is one to listen to, the policy says.
        signature: 64 bytes.

    Raises:
        Refusal: Rule `plan-signature`: the signature is not this server's under this plan.
    """

    plan: RunPlan
    server: PublicKey
    signature: bytes

    def __post_init__(self) -> None:
        if not self.server.verify(_CONTEXT, self.plan.to_bytes(), self.signature):
            raise Refusal("plan-signature", f"the run plan is not signed by the server key {self.server}")

    @classmethod
    def sign(cls, plan: RunPlan, key: SigningKey) -> "SignedPlan":
        """The plan as the owner of `key` announces it."""
        return cls(plan, key.public, key.sign(_CONTEXT, plan.to_bytes()))

    def to_bytes(self) -> bytes:
        """The blob to send."""
        return self.server.raw + self.signature + self.plan.to_bytes()

    def to_text(self) -> str:
        """The blob in base64, for logs."""
        return base64.b64encode(self.to_bytes()).decode()

    @classmethod
    def from_text(cls, text: str) -> "SignedPlan":
        """Read what `to_text` wrote; a `ValueError` or what `from_bytes` raises if it did not."""
        return cls.from_bytes(base64.b64decode(text))

    @classmethod
    def from_bytes(cls, blob: bytes) -> "SignedPlan":
        """Read what `to_bytes` wrote, from a stranger too.

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


def _is_unicode(text: str) -> bool:
    """Whether the text has no half of a surrogate pair, which no encoding can write."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
