"""How a site with little of its budget left still takes part in a whole run: with more noise than the plan asks for."""

from dataclasses import replace

from fedglm.privacy.accounting.accountant import within
from fedglm.privacy.accounting.calibration import calibrate
from fedglm.privacy.dp.mechanism import Event, Mechanism
from fedglm.privacy.ledger.charges import Budget
from fedglm.privacy.ledger.spending import Spending
from fedglm.privacy.policy.run_plan import RunPlan


def noise_for_remaining_budget(plan: RunPlan, spending: Spending, budget: Budget) -> Mechanism | None:
    """The noise with which what is left of a budget lasts for all turns of a run.

    It is the plan's, or what the site has taken in this run before, where that lasts. Where it takes more, but no more
    than `plan.noise_at_most`, it is the least that lasts. Beyond that so noisy an update would help nobody, and the
    site takes part with the plan's noise until its budget ends.

    Args:
        plan: Of the run.
        spending: Of the data set, so far.
        budget: What the data set may spend in its life.

    Returns:
        The plan's mechanism with that noise; None where the plan has none.
    """
    if plan.mechanism is None or plan.noise_at_most is None:
        return plan.mechanism
    if spending.without_noise:
        return plan.mechanism  # no amount of it keeps the promise now
    earlier = spending.events
    own = [row.charge for row in spending.rows if row.charge.run == plan.run and row.charge.purpose == "update"]
    # A server that went back to an older checkpoint may ask for more turns than it announced.
    turns = max(1, plan.turns - len(own))
    if plan.metrics is not None:
        earlier.append(replace(plan.metrics.event(), steps=turns))
    current = own[-1].mechanism if own and own[-1].mechanism is not None else plan.mechanism
    current = replace(plan.mechanism, noise_multiplier=max(current.noise_multiplier, plan.mechanism.noise_multiplier))
    steps = turns * current.steps

    def lasts(noise: float) -> bool:
        return within([*earlier, Event(noise, current.sampling_rate, steps)], budget.epsilon, budget.delta)

    if lasts(current.noise_multiplier):
        return current
    if plan.noise_at_most <= current.noise_multiplier or not lasts(plan.noise_at_most):
        return plan.mechanism
    noise = calibrate(budget.epsilon, budget.delta, current.sampling_rate, steps, earlier)
    return replace(plan.mechanism, noise_multiplier=min(noise, plan.noise_at_most))
