"""Checks of a site's custody: keys, the signed policy, the ledger and the remaining budget."""

from pathlib import Path

from fedglm.client.site.folder import Site
from fedglm.client.site.settings import SiteError
from fedglm.client.site.site_keys import read_flower_public_key
from fedglm.core.findings import Finding, failure, ok, warning
from fedglm.privacy.custody.budget_left import read_budget
from fedglm.privacy.custody.store import POLICY, is_established
from fedglm.privacy.errors import PolicyError, PrivacyError
from fedglm.privacy.policy.policy import ANY, Policy
from fedglm.privacy.policy.policy_file import load_policy
from fedglm.privacy.policy.rules import missing_keys

SIGN = "run fedglm client sign-policy"
"""Remedy of findings about a policy that is not in force."""

_MAX_FACTOR = 2.0  # by which a declared number of units may differ from the true one without a warning


def check_keys(site: Site) -> Finding:
    """Check that both private keys exist, are undamaged, and are readable by their owner alone."""
    try:
        read_flower_public_key(site.flower_key)
        key = site.key()
        site.vault()
    except (SiteError, PrivacyError) as exc:
        return failure("keys", str(exc), "make what is missing with fedglm client keygen")
    return ok("keys", f"both are there, for their owner alone; signing key {key.public.fingerprint()}")


def check_policy(site: Site, units: int | None) -> list[Finding]:
    """Check that the policy in force permits runs of this federation, and that budget is left.

    Args:
        site: The site.
        units: Number of units in the records; None where they could not be read.
    """
    check, folder = "policy", site.custody_folder
    if not is_established(folder):
        return [failure(check, "none is signed yet, so nothing may leave", f"fill in policy.toml, then {SIGN}")]
    try:
        policy = load_policy(folder / POLICY, site.key().public)
    except PolicyError as exc:
        return [failure(check, str(exc), SIGN)]
    except PrivacyError as exc:
        return [failure(check, str(exc), "mend the keys first")]
    if missing := missing_keys(policy):
        detail = f"it permits no run at all: not given are {', '.join(missing)}"
        return [failure(check, detail, f"fill them in in policy.toml, then {SIGN}")]
    if policy.servers != (ANY,) and site.kit.signing not in policy.servers:
        detail = "it does not list the server's key that kit.toml names"
        return [failure(check, detail, f'add "{site.kit.signing}" to servers in policy.toml, then {SIGN}')]
    unit = site.settings.data.unit
    if policy.unit not in (None, unit):
        detail = f"it protects each {policy.unit!r}, and the data tell units apart by {unit!r}"
        return [failure(check, detail, f"make unit in policy.toml and data.unit_field in site.toml agree, then {SIGN}")]
    if policy.state_encrypted and site.settings.site.state_key is None:
        detail = "it asks for encrypted state, and site.toml names no state_key"
        return [failure(check, detail, "fedglm client keygen --state-key makes one")]
    return [_check_in_force(site, policy), *_check_declared_units(policy, units), _check_budget(folder, policy)]


def _check_in_force(site: Site, policy: Policy) -> Finding:
    draft = site.folder / POLICY
    in_force = (site.custody_folder / POLICY).read_bytes()
    if draft.exists() and draft.read_bytes() != in_force:
        return warning("policy", "policy.toml was changed and not signed; the older one is in force", SIGN)
    noise = "runs without noise too" if policy.without_differential_privacy else "runs with noise alone"
    return ok("policy", f"in force, {noise}; {policy.sha256[:16]}")


def _check_declared_units(policy: Policy, units: int | None) -> list[Finding]:
    declared = policy.declare_units
    if declared is None or units is None or max(declared, units) <= _MAX_FACTOR * min(declared, units):
        return []
    detail = f"declare_units is {declared}, and the data hold {units} units: training divides by the former"
    return [warning("policy", detail, f"declare a round number near the true one, then {SIGN}")]


def _check_budget(folder: Path, policy: Policy) -> Finding:
    try:
        budget = read_budget(folder, policy)
    except PrivacyError as exc:
        return failure("ledger", str(exc), "put it back from where it was copied; never make a new one")
    if budget.epsilon is None or budget.spent is None or policy.without_differential_privacy:
        return ok("ledger", f"{budget.releases} releases; the policy permits runs without noise")
    detail = f"{budget.releases} releases; epsilon {budget.spent:.2f} of {budget.epsilon:g} is spent"
    if budget.without_noise:
        detail = "data of this set was released without noise before, so that no budget holds for it any more"
    if budget.spent >= budget.epsilon:
        return failure("ledger", detail, "no run with noise can go on; other data need a policy of their own")
    return ok("ledger", detail)
