"""Noise of a site whose remaining budget is too small for a whole run with the plan's noise."""

from dataclasses import replace

from fedglm.privacy.accounting.accountant import is_within_budget
from fedglm.privacy.accounting.calibration import calibrate
from fedglm.privacy.dp.mechanism import Event, Mechanism
from fedglm.privacy.ledger.charges import Budget
from fedglm.privacy.ledger.spending import Spending
from fedglm.privacy.policy.run_plan import RunPlan


def choose_noise_for_remaining_budget(plan: RunPlan, spending: Spending, budget: Budget) -> Mechanism | None:
    """Choose the noise with which the remaining budget lasts for all rounds that a node may take part in.

    It is the plan's noise, or that which the site has used in this run before, if the budget lasts with it. Else it is
    the least noise with which the budget lasts, up to the plan's `max_noise_multiplier`. Beyond that limit an update
    would be too noisy to be useful, and the site takes part with the plan's noise until its budget is spent.

    Args:
        plan: Plan of the run.
        spending: Spending of the data set so far.
        budget: Budget of the data set.

    Returns:
        The plan's mechanism with that noise; None where the plan has none.
    """
    noise = plan.spec.noise
    planned, max_noise = noise.mechanism, noise.max_noise_multiplier
    if planned is None or max_noise is None:
        return planned
    if spending.without_noise:
        return planned  # no amount of it keeps the promise now
    events_so_far = spending.events
    charges = [row.charge for row in spending.rows if row.charge.run == plan.run and row.charge.purpose == "update"]
    # A server that went back to an older checkpoint may ask for more rounds than it planned.
    rounds_left = max(1, noise.max_participations - len(charges))
    if noise.metrics is not None:
        events_so_far.append(replace(noise.metrics.event(), steps=rounds_left))
    current = charges[-1].mechanism if charges and charges[-1].mechanism is not None else planned
    current = replace(planned, noise_multiplier=max(current.noise_multiplier, planned.noise_multiplier))
    steps = rounds_left * current.steps

    def budget_lasts(multiplier: float) -> bool:
        return is_within_budget(
            [*events_so_far, Event(multiplier, current.sampling_rate, steps)], budget.epsilon, budget.delta
        )

    if budget_lasts(current.noise_multiplier):
        return current
    if max_noise <= current.noise_multiplier or not budget_lasts(max_noise):
        return planned
    multiplier = calibrate(budget.epsilon, budget.delta, current.sampling_rate, steps, events_so_far)
    return replace(planned, noise_multiplier=min(multiplier, max_noise))
