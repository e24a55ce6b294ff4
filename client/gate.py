"""The outbound gate: the only way for data to leave the node.

Everything that a node sends passes here: join replies through `release_join`, answers through `release`, countersigned
tree heads through `countersign`, replies to light releases through `release_light`, to models through `release_model`;
failures leave as `client.no_answer`. The gate holds the server to its signed plan, and both of them to the site's
policy. It charges the ledger for an update before that leaves, and releases the same attempt again without a charge. In
doubt it refuses, logs the refusal, and nothing leaves. Before records are used, a refusal names its rule to the server;
afterwards even the fact that something was refused depends on the records, therefore it becomes `Withheld`, and is
charged.

    admit       verifies the plan of a run, checks it against the policy, and pins it
    authorize   checks a request against the pinned plan, before anything is computed for it
    release     checks the answer against plan and policy, and charges for it
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from fedglm.autoglm.tasks.evaluation import Evaluation
from fedglm.client.exchange import Authorization, NodeResult
from fedglm.client.flower_records import count_message_bytes
from fedglm.client.models.admission import admit_model
from fedglm.client.no_answer import Withheld
from fedglm.client.plan_checks import check_noise, check_update
from fedglm.client.seals import read_tree_heads
from fedglm.core.canonical_json import canonical_json
from fedglm.core.code_identity import code_sha256
from fedglm.core.files import write_atomically
from fedglm.inference.release.manifest import hash_to_hex
from fedglm.inference.validation.validation import Validation, sign_validation
from fedglm.privacy.custody.site_log import Release
from fedglm.privacy.custody.store import Custody
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.errors import PrivacyError, Refusal
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.ledger.charges import Charge
from fedglm.privacy.log.chained_file import Head
from fedglm.privacy.policy.rules import MESSAGE_RULES, PLAN_RULES, OutboundMessage, check_message, check_plan
from fedglm.privacy.policy.run_plan import RunPlan, SignedPlan
from fedglm.protocol.messages import (
    LENGTHS,
    CodedReply,
    JoinReply,
    LightOffer,
    LightReply,
    ModelOffer,
    ModelReply,
    Seal,
    Sealed,
    TrainReply,
    TrainRequest,
)
from fedglm.protocol.model_manifest import ModelManifest, hash_text
from fedglm.protocol.signatures import sign_join_reply, sign_light_reply, sign_model_reply, sign_train_reply

PINNED = "run.plan"
"""Name of the file that holds the run's plan, in the node's folder."""

_METRICS = ("loss", "metric", "count")


class OutboundGate:
    """Checks plans, requests and answers against the site's policy, and makes the content of the replies.

    Args:
        custody: The site's policy and ledger.
        folder: The node's folder of this federation, where the run's plan is pinned.
        key: Signs all that leaves; None where no broker stands between the node and the server.
        encrypted: Whether the node's state is encrypted at rest.
    """

    def __init__(
        self, custody: Custody, folder: Path, key: SigningKey | None = None, *, encrypted: bool = False
    ) -> None:
        self._custody, self._folder, self._key, self._encrypted = custody, folder, key, encrypted

    @property
    def plan(self) -> RunPlan:
        """The pinned plan, checked against the current policy.

        Raises:
            Refusal: No plan is pinned, or the policy has changed and no longer permits it.
        """
        with self._custody.log_refusals("", 0):
            return self._load_plan()

    @property
    def envelope(self) -> int:
        """Maximum size in bytes of the message around a coded update, under the pinned plan."""
        signed = self._read_pinned()
        return self._measure_envelope(signed is not None and signed.plan.spec.noise.mechanism is not None)

    def admit(self, blob: bytes) -> None:
        """Verify the plan of a run, check it against the policy, and pin it: later requests must keep to it.

        Args:
            blob: The signed plan, as the server sent it.

        Raises:
            Refusal: The plan is not signed, or breaks a rule of the policy.
            StorageError: The plan could not be written.
        """
        with self._custody.log_refusals("", 0):
            signed = SignedPlan.from_bytes(blob)
        with self._custody.log_refusals(signed.plan.run, 0):
            self._check_plan(signed)
            self._custody.log.record_plan(signed, [*(rule.name for rule in PLAN_RULES), "code"])
        write_atomically(self._folder / PINNED, signed.to_bytes())

    def authorize(self, request: TrainRequest, *, update: bool = True) -> Authorization:
        """Check a request, and return what the node may do for it; called before the node does anything.

        Args:
            request: The server's request.
            update: Whether it asks for an update. Whether it asks for metrics beside the update is in the request.

        Raises:
            Refusal: The request is not of the pinned plan, asks for something that the policy does not permit, or the
                ledger is not the one that the server knows.
        """
        with self._custody.log_refusals(request.run, request.round):
            plan = self._load_plan()
            if (request.run, request.layout) != (plan.run, plan.layout):
                raise Refusal("plan", "the instruction is of another run or model than the plan that was announced")
            if request.round > plan.spec.rounds:
                raise Refusal("plan", f"round {request.round}, and the plan has {plan.spec.rounds}")
            if request.anchor is not None and not self._custody.log.contains(Head.from_text(request.anchor)):
                raise Refusal("log-anchor", "the log is not the one that the server has seen, or an older copy")
            if request.evaluate or not update:
                check_message(OutboundMessage(size=0, metrics=frozenset(_METRICS)), self._custody.policy)
                check_noise("metrics", plan.spec.noise.metrics, plan.spec.noise.metrics, plan)
            mechanism = self._custody.choose_mechanism(plan)

        def check_budget() -> None:
            with self._custody.log_refusals(request.run, request.round):
                requested = {"update": mechanism} if update else {}
                requested |= {"metrics": plan.spec.noise.metrics} if request.evaluate or not update else {}
                self._check_participations(plan, requested)
                charges = [self._make_charge(plan, request, name, noise) for name, noise in requested.items()]
                self._custody.check_budget(*charges)

        def has_charged(attempt: str) -> bool:
            charges = (row.charge for row in self._custody.ledger.rows())
            return any(charge.key == (attempt, "update") for charge in charges)

        declared_units, commitment = self._custody.policy.declare_units or 0, self._custody.commitment
        return Authorization(
            mechanism, plan.spec.noise.metrics, declared_units, check_budget, has_charged, plan.model, commitment
        )

    def countersign(self, seal: Seal) -> Sealed:
        """Log and countersign the server's signed tree head, and return it with the site's own.

        Args:
            seal: The server's message.

        Raises:
            Refusal: Rule `seal`, or there is no plan.
            LogError: The log could not be written.
        """
        with self._custody.log_refusals("", 0):
            signed = self._read_pinned()
            if signed is None:
                raise Refusal("plan", "no plan was announced for this run")
            try:
                server_head, own_head = read_tree_heads(seal, self._custody.log.origin)
            except PrivacyError as exc:
                raise Refusal("seal", str(exc)) from exc
            if seal.run != signed.plan.run:
                raise Refusal("seal", "the checkpoint is of another run than the plan that was announced")
            head, key = self._custody.log.exchange_tree_heads(signed, server_head, own_head), self._custody.key
            countersignature = server_head.countersign(key)
            return Sealed(log=head.log, **head.to_fields(), key=key.public.hex, countersignature=countersignature)

    def release_join(self, reply: JoinReply) -> JoinReply:
        """Return the reply to the server's first query, signed where the site signs.

        Raises:
            Refusal: As `plan`.
        """
        if self._key is None:
            return reply
        return replace(reply, signature=sign_join_reply(self._key, reply.to_fields(), self.plan.sha256))

    def check_offer(self, offer: LightOffer) -> None:
        """Check that a light release comes in the run whose plan is pinned; who signed it is checked with the release.

        Raises:
            Refusal: As `plan`, or the offer is of another run.
        """
        with self._custody.log_refusals(offer.run, 0):
            if offer.run != self._load_plan().run:
                raise Refusal("plan", "the light release is of another run than the plan that was announced")

    def admit_model(self, offer: ModelOffer) -> ModelManifest:
        """Check the model that the run ends with, as `client.models.admission` says, and return its manifest.

        Raises:
            Refusal: As `plan`, or the model is not the run's.
        """
        with self._custody.log_refusals(offer.run, 0):
            self._load_plan()
            signed = self._read_pinned()
            if signed is None:
                raise Refusal("plan", "no plan was announced for this run")
            return admit_model(offer, signed, self._custody.log)

    def release_model(self, reply: ModelReply, manifest: ModelManifest, text: str) -> ModelReply:
        """Return the reply to an offered model, signed where the site signs, and log that the site holds the model.

        Nothing in it depends on records, so that nothing is charged and the policy need not permit it.

        Args:
            reply: What the node holds.
            manifest: What the server signed of the model.
            text: Text of the manifest.

        Raises:
            Refusal: As `plan`.
            LogError: The entry could not be written.
        """
        plan = self.plan
        if reply.model:
            self._custody.log.record_model(manifest.run, manifest.rounds, manifest.model_sha256, hash_text(text))
        if self._key is None:
            return reply
        return replace(reply, signature=sign_model_reply(self._key, reply.to_fields(), plan.sha256))

    def release_light(self, reply: LightReply, validation: Validation | None = None) -> LightReply:
        """Return the reply to a light release, signed where the site signs.

        Nothing in it depends on records, so that nothing is charged. How a release works here is about the site's
        machine, and leaves, signed by the site, only where the policy permits; what the policy keeps does not keep the
        reply.

        Args:
            reply: What the node holds.
            validation: How a release works here; None where nobody knows.

        Raises:
            Refusal: As `plan`.
            LogError: The entry about the validation could not be written.
        """
        plan = self.plan
        if validation is not None and self._custody.policy.light_validation:
            with contextlib.suppress(Refusal):  # it is logged
                reply = replace(reply, validation=self._release_validation(plan, validation))
        if self._key is None:
            return reply
        return replace(reply, signature=sign_light_reply(self._key, reply.to_fields(), plan.sha256))

    def _release_validation(self, plan: RunPlan, validation: Validation) -> str:
        """Check, sign and log a validation that leaves."""
        signed = sign_validation(validation, self._custody.key).decode()
        with self._custody.log_refusals(plan.run, 0):
            check_message(OutboundMessage(size=len(signed.encode()), validation=True), self._custody.policy)
        manifest = hash_to_hex(str(validation.manifest_sha256))
        self._custody.log.record_validation(plan.run, manifest, signed, [rule.name for rule in MESSAGE_RULES])
        return signed

    def release(self, result: NodeResult, request: TrainRequest) -> CodedReply:
        """Check the result, charge for what leaves, then build the reply.

        Args:
            result: The node's result.
            request: The request that it answers.

        Raises:
            Withheld: A rule is broken, the attempt failed, or the charge could not be written. Nothing may be sent, and
                the server does not learn which of these it was.
        """
        metrics = None if result.evaluation is None else asdict(result.evaluation)
        coded = CodedReply(result.reply, result.blob, metrics)
        if result.attempt is None:  # no record was used
            return self._sign(coded, request.run, request.round)
        try:
            with self._custody.log_refusals(request.run, request.round):
                plan = self._load_plan()
                if result.failure is not None:
                    raise result.failure
                self._custody.charge(*self._make_releases(result, request, plan))
            if result.blob is not None and plan.spec.noise.mechanism is not None:
                coded = replace(coded, reply=replace(coded.reply, log=self._custody.log.head.to_text()))
            return self._sign(coded, request.run, request.round)
        except Exception as exc:
            self._charge_failed(result, request)
            raise Withheld from exc

    def _make_releases(self, result: NodeResult, request: TrainRequest, plan: RunPlan) -> list[Release]:
        """Check a result against every rule, and make the releases to charge for; raises Refusal."""
        metrics = frozenset(_METRICS if result.evaluation is not None else ())
        size = len(result.blob or b"") + self._measure_envelope(plan.spec.noise.mechanism is not None)
        check_message(OutboundMessage(size, metrics), self._custody.policy)
        releases, passed = [], [rule.name for rule in MESSAGE_RULES]
        if result.blob is not None:
            non_zeros = check_update(result.blob, plan)
            check_noise("plan", result.noise, plan.spec.noise.mechanism, plan)
            charge = self._make_charge(plan, request, "update", result.noise, result.attempt, result.blob)
            rules = (*passed, "size", "well-formed", "plan")
            releases.append(Release(charge, len(result.blob), non_zeros, plan.spec.codec, rules))
        if result.evaluation is not None:
            check_noise("metrics", result.evaluation_noise, plan.spec.noise.metrics, plan)
            content = canonical_json({**asdict(result.evaluation), "run": request.run, "round": request.round})
            charge = self._make_charge(plan, request, "metrics", result.evaluation_noise, result.attempt, content)
            releases.append(Release(charge, len(content), rules=passed))
        return releases

    def _charge_failed(self, result: NodeResult, request: TrainRequest) -> None:
        """Charge for an attempt of which nothing leaves: that nothing leaves may depend on noise that was used.

        Where not even the charge can be written, no answer could have left whatever the noise was.
        """
        noises = {"update": result.noise, "metrics": result.evaluation_noise}
        attempted = {purpose: noises[purpose] for purpose in result.purposes}
        with contextlib.suppress(PrivacyError):
            plan = self._load_plan()
            charges = [
                self._make_charge(plan, request, name, noise, result.attempt) for name, noise in attempted.items()
            ]
            self._custody.charge_failed(*charges)

    def _check_participations(self, plan: RunPlan, requested: Mapping[str, Mechanism | None]) -> None:
        """Refuse more noised answers than the plan has participations: its noise was calibrated for that number.

        Without noise no number is guaranteed, and an answer that failed may be made again.
        """
        maximum = plan.spec.noise.max_participations
        counts = Counter(row.charge.purpose for row in self._custody.ledger.rows() if row.charge.run == plan.run)
        for purpose, noise in requested.items():
            if noise is not None and counts[purpose] >= maximum:
                raise Refusal("plan", f"{maximum} answers were made, and the plan has no more for one node")

    def _sign(self, coded: CodedReply, run: str, server_round: int) -> CodedReply:
        if self._key is None:
            return coded
        fields = coded.reply.to_fields()
        signature = sign_train_reply(self._key, fields, run, server_round, coded.blob or b"", coded.metrics or {})
        return replace(coded, reply=replace(coded.reply, signature=signature))

    def _measure_envelope(self, private: bool) -> int:
        reply = TrainReply(nonce="0" * 16, log=Head(999_999_999, "0" * 64).to_text() if private else None)
        metrics = asdict(Evaluation(loss=1.0, metric=1.0, count=2**40)) if self._custody.policy.metrics else None
        return count_message_bytes(self._sign(CodedReply(reply, b"", metrics), "", 1)) + LENGTHS

    def _check_plan(self, signed: SignedPlan) -> None:
        check_plan(signed, self._custody.policy)
        if self._custody.policy.state_encrypted and not self._encrypted:
            raise Refusal("state-encrypted", "the node's state is not encrypted, and the policy asks for it")
        if signed.plan.code != code_sha256():
            raise Refusal("code", "the run is of other code than is installed here: install the server's version")
        mechanism = signed.plan.spec.noise.mechanism
        if mechanism is not None and mechanism.unit != self._custody.unit:
            raise Refusal("unit", f"the plan protects each {mechanism.unit}, the site's data each {self._custody.unit}")

    def _read_pinned(self) -> SignedPlan | None:
        """Read the plan that `admit` pinned; None where there is none."""
        path = self._folder / PINNED
        return SignedPlan.from_bytes(path.read_bytes()) if path.is_file() else None

    def _load_plan(self) -> RunPlan:
        """Read the pinned plan and check it against the current policy."""
        signed = self._read_pinned()
        if signed is None:
            raise Refusal("plan", "no plan was announced for this run")
        self._check_plan(signed)
        return signed.plan

    def _make_charge(
        self,
        plan: RunPlan,
        request: TrainRequest,
        purpose: str,
        noise: Mechanism | None,
        attempt: str | None = None,
        content: bytes | None = None,
    ) -> Charge:
        """Make the charge for content that leaves; without content, for an attempt of which nothing leaves."""
        release = hashlib.sha256((attempt or "").encode() if content is None else content).hexdigest()
        run, number = request.run, request.round
        return self._custody.make_charge(run, number, noise, plan.sha256, release, purpose=purpose, attempt=attempt)
