"""The outbound gate: the one door out of the node.

Whatever a node sends passes here: introductions by `introduce`, answers by `release`, what went wrong by
`client.no_answer`. The gate holds the server to its signed plan, and both of them to the site's policy; it charges the
ledger for an update before that leaves, and lets the same attempt out again without a charge. On doubt it refuses,
writes the refusal down, and nothing leaves. Before records are looked at, a refusal names its rule to the server;
afterwards even that something was refused follows from the records, so that it is `Withheld`, and charged.

    admit     the plan of a run is verified, held to the policy, and pinned
    permit    an instruction is held to the pinned plan, before anything is computed for it
    release   the answer is held to plan and policy, and charged
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from fedglm.autoglm.tasks.evaluation import Evaluation
from fedglm.client.flower_records import size_of
from fedglm.client.no_answer import Withheld
from fedglm.client.node import Authorization, LocalResult
from fedglm.client.plan_checks import check_noise, check_update
from fedglm.core.canonical_json import canonical_json
from fedglm.core.code_identity import code_sha256
from fedglm.core.files import write_atomically
from fedglm.privacy.custody.site_log import Release
from fedglm.privacy.custody.store import Custody
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.errors import PrivacyError, Refusal
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.ledger.charges import Charge
from fedglm.privacy.log.chained_file import Head
from fedglm.privacy.log.entries import is_signature
from fedglm.privacy.log.tree_head import SignedTreeHead
from fedglm.privacy.policy.rules import MESSAGE_RULES, PLAN_RULES, OutboundMessage, check_message, check_plan
from fedglm.privacy.policy.run_plan import RunPlan, SignedPlan
from fedglm.protocol.messages import LENGTHS, CodedReply, JoinReply, Seal, Sealed, TrainReply, TrainRequest
from fedglm.protocol.signatures import sign_join_reply, sign_train_reply

PINNED = "run.plan"
_METRICS = ("loss", "metric", "count")


class OutboundGate:
    """Holds plans, instructions and answers to the site's policy, and makes the content of the replies.

    Args:
        custody: The site's policy and ledger.
        folder: The node's folder of this federation, where the run's plan is pinned.
        key: Signs all that leaves; None where nobody stands between the node and the server.
        encrypted: Whether the node's state is encrypted at rest.
    """

    def __init__(
        self, custody: Custody, folder: Path, key: SigningKey | None = None, *, encrypted: bool = False
    ) -> None:
        self._custody, self._folder, self._key, self._encrypted = custody, folder, key, encrypted

    @property
    def plan(self) -> RunPlan:
        """The plan that is pinned, held to the policy as it is now.

        Raises:
            Refusal: There is none, or the policy has changed so that it is refused.
        """
        with self._custody.log_refusals("", 0):
            return self._pinned()

    def admit(self, blob: bytes) -> None:
        """Verify the plan of a run, hold it to the policy, and pin it: from now on instructions must keep to it.

        Raises:
            Refusal: The plan is not signed, or breaks a rule of the policy.
        """
        with self._custody.log_refusals("", 0):
            signed = SignedPlan.from_bytes(blob)
        with self._custody.log_refusals(signed.plan.run, 0):
            self._hold(signed)
            self._custody.log.record_plan(signed, [*(rule.name for rule in PLAN_RULES), "code"])
        write_atomically(self._folder / PINNED, signed.to_bytes())

    def permit(self, instruction: TrainRequest, *, update: bool = True) -> Authorization:
        """What the node may do for an instruction, before it does anything.

        Args:
            instruction: The server's.
            update: Whether it asks for an update; measures are asked for in the instruction itself.

        Raises:
            Refusal: The instruction is not of the pinned plan, asks for what the policy keeps, or the ledger is not
                the one that the server has known.
        """
        with self._custody.log_refusals(instruction.run, instruction.round):
            plan = self._pinned()
            if (instruction.run, instruction.layout) != (plan.run, plan.layout):
                raise Refusal("plan", "the instruction is of another run or model than the plan that was announced")
            if instruction.round > plan.spec.rounds:
                raise Refusal("plan", f"round {instruction.round}, and the plan has {plan.spec.rounds}")
            if instruction.anchor is not None and not self._custody.log.contains(Head.from_text(instruction.anchor)):
                raise Refusal("log-anchor", "the log is not the one that the server has seen, or an older copy")
            if instruction.evaluate or not update:
                check_message(OutboundMessage(size=0, metrics=frozenset(_METRICS)), self._custody.policy)
                check_noise("metrics", plan.spec.noise.metrics, plan.spec.noise.metrics, plan)
            mechanism = self._custody.choose_mechanism(plan)

        def check_budget() -> None:
            with self._custody.log_refusals(instruction.run, instruction.round):
                asked = {"update": mechanism} if update else {}
                asked |= {"metrics": plan.spec.noise.metrics} if instruction.evaluate or not update else {}
                self._check_turns(plan, asked)
                charges = [self._charge(plan, instruction, name, noise) for name, noise in asked.items()]
                self._custody.check_budget(*charges)

        def has_charged(attempt: str) -> bool:
            charges = (row.charge for row in self._custody.ledger.rows())
            return any(charge.key == (attempt, "update") for charge in charges)

        declared, data = self._custody.policy.declare_units or 0, self._custody.commitment
        return Authorization(mechanism, plan.spec.noise.metrics, declared, check_budget, has_charged, plan.model, data)

    def seal(self, seal: Seal) -> Sealed:
        """The reply to the server's checkpoint: it is kept, and the site's own is shown.

        Raises:
            Refusal: Rule `seal`, or there is no plan.
            LogError: It could not be written.
        """
        with self._custody.log_refusals("", 0):
            signed = self._announced()
            if signed is None:
                raise Refusal("plan", "no plan was announced for this run")
            try:
                theirs, ours = _checkpoints(seal, self._custody.log.origin)
            except PrivacyError as exc:
                raise Refusal("seal", str(exc)) from exc
            if seal.run != signed.plan.run:
                raise Refusal("seal", "the checkpoint is of another run than the plan that was announced")
            own, key = self._custody.log.exchange_tree_heads(signed, theirs, ours), self._custody.key
            return Sealed(log=own.log, **own.to_fields(), key=key.public.hex, countersignature=theirs.countersign(key))

    def introduce(self, introduction: JoinReply) -> JoinReply:
        """The reply to the server's first query, signed where the site signs."""
        if self._key is None:
            return introduction
        return replace(introduction, signature=sign_join_reply(self._key, introduction.to_fields(), self.plan.sha256))

    def release(self, outcome: LocalResult, instruction: TrainRequest) -> CodedReply:
        """Check everything, charge for what leaves, then build the reply.

        Raises:
            Withheld: A rule is broken, the attempt failed, or the charge could not be written. Nothing may be sent, and
                the server is not told which of these it was.
        """
        metrics = None if outcome.evaluation is None else asdict(outcome.evaluation)
        reply = CodedReply(outcome.report, outcome.blob, metrics)
        if outcome.attempt is None:  # no record was looked at
            return self._signed(reply, instruction.run, instruction.round)
        try:
            with self._custody.log_refusals(instruction.run, instruction.round):
                plan = self._pinned()
                if outcome.failure is not None:
                    raise outcome.failure
                self._custody.charge(*self._leaving(outcome, instruction, plan))
            if outcome.blob is not None and plan.spec.noise.mechanism is not None:
                reply = replace(reply, reply=replace(reply.reply, log=self._custody.log.head.to_text()))
            return self._signed(reply, instruction.run, instruction.round)
        except Exception as exc:
            self._charge_failed(outcome, instruction)
            raise Withheld from exc

    def _leaving(self, outcome: LocalResult, instruction: TrainRequest, plan: RunPlan) -> list[Release]:
        """What would leave, held to every rule; raises Refusal."""
        metrics = frozenset(_METRICS if outcome.evaluation is not None else ())
        size = len(outcome.blob or b"") + self._envelope(plan.spec.noise.mechanism is not None)
        check_message(OutboundMessage(size, metrics), self._custody.policy)
        leaving, held = [], [rule.name for rule in MESSAGE_RULES]
        if outcome.blob is not None:
            non_zeros = check_update(outcome.blob, plan)
            check_noise("plan", outcome.noise, plan.spec.noise.mechanism, plan)
            charge = self._charge(plan, instruction, "update", outcome.noise, outcome.attempt, outcome.blob)
            rules = (*held, "size", "well-formed", "plan")
            leaving.append(Release(charge, len(outcome.blob), non_zeros, plan.spec.codec, rules))
        if outcome.evaluation is not None:
            check_noise("metrics", outcome.evaluation_noise, plan.spec.noise.metrics, plan)
            told = canonical_json({**asdict(outcome.evaluation), "run": instruction.run, "round": instruction.round})
            charge = self._charge(plan, instruction, "metrics", outcome.evaluation_noise, outcome.attempt, told)
            leaving.append(Release(charge, len(told), rules=held))
        return leaving

    def _charge_failed(self, outcome: LocalResult, instruction: TrainRequest) -> None:
        """Charge for an attempt of which nothing leaves: that nothing does may follow from noise that met data.

        Where even that cannot be written, no answer could have left whatever the noise was.
        """
        noises = {"update": outcome.noise, "metrics": outcome.evaluation_noise}
        made = {purpose: noises[purpose] for purpose in outcome.purposes}
        with contextlib.suppress(PrivacyError):
            plan = self._pinned()
            charges = [self._charge(plan, instruction, name, noise, outcome.attempt) for name, noise in made.items()]
            self._custody.charge_failed(*charges)

    def _check_turns(self, plan: RunPlan, asked: Mapping[str, Mechanism | None]) -> None:
        """Refuse more noised answers than the plan has turns: its noise was planned for so many.

        Without noise nothing is promised of any number, and an answer that failed may be made once more.
        """
        most = plan.spec.noise.max_participations
        made = Counter(row.charge.purpose for row in self._custody.ledger.rows() if row.charge.run == plan.run)
        for purpose, noise in asked.items():
            if noise is not None and made[purpose] >= most:
                raise Refusal("plan", f"{most} answers were made, and the plan has no more for one node")

    def _signed(self, coded: CodedReply, run: str, server_round: int) -> CodedReply:
        if self._key is None:
            return coded
        fields = coded.reply.to_fields()
        signature = sign_train_reply(self._key, fields, run, server_round, coded.blob or b"", coded.metrics or {})
        return replace(coded, reply=replace(coded.reply, signature=signature))

    @property
    def envelope(self) -> int:
        """Most bytes that the message around a coded update takes, under the plan that is pinned."""
        signed = self._announced()
        return self._envelope(signed is not None and signed.plan.spec.noise.mechanism is not None)

    def _envelope(self, private: bool) -> int:
        reply = TrainReply(nonce="0" * 16, log=Head(999_999_999, "0" * 64).to_text() if private else None)
        measures = asdict(Evaluation(loss=1.0, metric=1.0, count=2**40)) if self._custody.policy.metrics else None
        return size_of(self._signed(CodedReply(reply, b"", measures), "", 1)) + LENGTHS

    def _hold(self, signed: SignedPlan) -> None:
        check_plan(signed, self._custody.policy)
        if self._custody.policy.state_encrypted and not self._encrypted:
            raise Refusal("state-encrypted", "the node's state is not encrypted, and the policy asks for it")
        if signed.plan.code != code_sha256():
            raise Refusal("code", "the run is of other code than is installed here: install the server's version")
        mechanism = signed.plan.spec.noise.mechanism
        if mechanism is not None and mechanism.unit != self._custody.unit:
            raise Refusal("unit", f"the plan protects each {mechanism.unit}, the site's data each {self._custody.unit}")

    def _announced(self) -> SignedPlan | None:
        """What `admit` pinned."""
        path = self._folder / PINNED
        return SignedPlan.from_bytes(path.read_bytes()) if path.is_file() else None

    def _pinned(self) -> RunPlan:
        """The run's plan, held to the policy as it is now."""
        signed = self._announced()
        if signed is None:
            raise Refusal("plan", "no plan was announced for this run")
        self._hold(signed)
        return signed.plan

    def _charge(
        self,
        plan: RunPlan,
        instruction: TrainRequest,
        purpose: str,
        noise: Mechanism | None,
        attempt: str | None = None,
        content: bytes | None = None,
    ) -> Charge:
        """The charge for what leaves; without content, for an attempt of which nothing does."""
        release = hashlib.sha256((attempt or "").encode() if content is None else content).hexdigest()
        run, number = instruction.run, instruction.round
        return self._custody.make_charge(run, number, noise, plan.sha256, release, purpose=purpose, attempt=attempt)


def _checkpoints(seal: Seal, log: str) -> tuple[SignedTreeHead, tuple[SignedTreeHead, str] | None]:
    """The server's checkpoint, and the site's own with the countersignature; raises PrivacyError where one is none."""
    words = seal.to_fields()
    theirs = SignedTreeHead.from_fields(seal.log, words)
    own = {name.removeprefix("your_"): value for name, value in words.items() if name.startswith("your_")}
    if not own:
        return theirs, None
    countersignature = own.get("countersignature", "")
    if not is_signature(countersignature):
        raise PrivacyError("a checkpoint comes with its countersignature")
    return theirs, (SignedTreeHead.from_fields(log, own), str(countersignature))
