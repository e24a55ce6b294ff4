"""What a site checks of the model that a run ends with, before anything is rebuilt."""

from fedglm.privacy.custody.site_log import CustodyLog
from fedglm.privacy.errors import PrivacyError, Refusal
from fedglm.privacy.policy.run_plan import SignedPlan
from fedglm.protocol.messages import ModelOffer
from fedglm.protocol.model_manifest import ModelManifest, hash_text


def admit_model(offer: ModelOffer, signed: SignedPlan, log: CustodyLog) -> ModelManifest:
    """Check an offered model: the server of the run's plan signed it, it is the run's, and there is one for a run.

    Args:
        offer: The server's offer.
        signed: The pinned plan.
        log: The site's log. A server that gave another model of the same run again and again would make it grow.

    Returns:
        What the server signed of the model.

    Raises:
        Refusal: Rule `plan`.
    """
    plan = signed.plan
    try:
        manifest = ModelManifest.read(offer.manifest, [signed.server])
    except PrivacyError as exc:
        raise Refusal("plan", str(exc)) from exc
    if offer.run != plan.run or (manifest.run, manifest.layout) != (plan.run, plan.layout):
        raise Refusal("plan", "the model is of another run or layout than the plan that was announced")
    if log.find_model(plan.run) not in (None, hash_text(offer.manifest)):
        raise Refusal("plan", "another model was given at the end of this run already")
    return manifest
