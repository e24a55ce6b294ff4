"""The terms of a plan, which a server's operator hands over before any run: their meaning, and the policy's objections.

    TERMS.plan    a signed plan in base64; its run is called "terms", and its terms are those of every run like it

A site that lists `terms_sha256` in its policy's `plans` permits these runs and no others of that server.
"""

import binascii
from dataclasses import dataclass
from pathlib import Path

from fedglm.client.site.folder import Site
from fedglm.client.site.settings import SiteError
from fedglm.core.code_identity import code_sha256
from fedglm.core.untrusted_files import read_regular
from fedglm.privacy.accounting.accountant import spent
from fedglm.privacy.custody.store import POLICY
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.rules import PLAN_RULES, broken_rules
from fedglm.privacy.policy.run_plan import MAX_BYTES_AS_TEXT, SignedPlan
from fedglm.protocol.recipe import Recipe, RecipeError


@dataclass(frozen=True)
class PlanTerms:
    """The content of a plan, for the people of a site; `fedglm client plan --json` prints the attributes by name.

    Attributes:
        sha256: SHA-256 (hex) of the terms, for the policy's `plans`.
        meaning: Names and values of all that the plan determines, the most important first.
        epsilon: Epsilon that a whole run spends, at the policy's delta; None without noise or without a delta.
        broken: Rules of the site's policy that the plan breaks, each with the reason.
    """

    sha256: str
    meaning: dict[str, str]
    epsilon: float | None
    broken: dict[str, str]


def read_terms(path: Path) -> SignedPlan:
    """Read a file of terms.

    Raises:
        SiteError: The file cannot be read, or holds no signed plan.
    """
    try:
        return SignedPlan.from_text(read_regular(path, MAX_BYTES_AS_TEXT).decode("ascii").strip())
    except OSError as exc:
        raise SiteError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except (UnicodeDecodeError, binascii.Error, ValueError, PrivacyError) as exc:
        raise SiteError(f"{path} holds no terms of a plan ({exc}): ask the server's people for them again") from exc


def evaluate_terms(site: Site, signed: SignedPlan) -> PlanTerms:
    """Describe a plan for a site, and check it against the policy.toml in the site's folder, signed or not.

    Raises:
        SiteError: The plan is another server's, its recipe is invalid, or there is no policy.toml.
        PolicyError: policy.toml is no policy.
    """
    if signed.server.hex != site.kit.signing:
        raise SiteError(f"these are terms of the server {signed.server}, and kit.toml names another")
    try:
        recipe = Recipe.from_toml(signed.plan.spec.recipe)
    except RecipeError as exc:
        raise SiteError(f"the plan cannot be followed: {exc}") from exc
    policy = _read_policy(site)
    broken = {rule.name: reason for rule, reason in broken_rules(PLAN_RULES, signed, policy)}
    if signed.plan.code != code_sha256():
        broken["code"] = "the runs are of other code than is installed here: install the server's version"
    unit = site.settings.data.unit
    mechanism = signed.plan.spec.noise.mechanism
    if mechanism is not None and mechanism.unit != unit:
        broken.setdefault("unit", f"the plan protects each {mechanism.unit}, the site's data each {unit}")
    return PlanTerms(signed.plan.terms_sha256, _describe_plan(signed, recipe), _compute_epsilon(signed, policy), broken)


def _read_policy(site: Site) -> Policy:
    path = site.folder / POLICY
    try:
        return Policy.from_toml(path.read_text(encoding="utf-8"), origin=str(path))
    except (OSError, UnicodeDecodeError) as exc:
        raise SiteError(f"cannot read {path} ({exc}): copy it from the kit and fill it in") from exc


def _describe_plan(signed: SignedPlan, recipe: Recipe) -> dict[str, str]:
    plan, spec, data, training = signed.plan, signed.plan.spec, recipe.data, recipe.training
    model = "each site's copy of one folder" if recipe.model.path else str(recipe.model.preset)
    target = {"task": data.task, "classes": ", ".join(data.class_names), "features": ", ".join(data.feature_fields)}
    meaning = {
        "server": str(signed.server),
        "learns": "; ".join(f"{name}: {value}" for name, value in target.items() if value),
        "model": f"{model}, {plan.parameters:,} parameters, layout {plan.layout}",
        "starts from": plan.model,
        "rounds": f"{spec.rounds}, of which a site takes part in {spec.noise.max_participations} at most",
        "training": f"{spec.local_steps} steps a round, {training.optimizer}, learning rate {training.learning_rate:g}",
        "updates": spec.codec if spec.density is None else f"{spec.codec}, {spec.density:.3g} of the coordinates",
        "code": plan.code,
    }
    noise, metrics = spec.noise.mechanism, spec.noise.metrics
    if noise is None:
        meaning["noise"] = "none: no privacy guarantee at all"
    else:
        meaning["noise"] = f"multiplier {noise.noise_multiplier:.3g}, clipping norm {noise.clipping_norm:g}"
        meaning["protects"] = f"each {noise.unit}, {noise.records_per_unit} records of it at most"
        meaning["sampling"] = f"each {noise.unit} with probability {noise.sampling_rate:.3g} a step"
        meaning["measures"] = f"noised, multiplier {metrics.noise_multiplier:.3g}" if metrics else "none"
    return meaning


def _compute_epsilon(signed: SignedPlan, policy: Policy) -> float | None:
    noise = signed.plan.spec.noise
    if noise.mechanism is None or policy.delta is None:
        return None
    events = [mechanism.event() for mechanism in noise.mechanisms] * noise.max_participations
    return spent(events, policy.delta).epsilon
