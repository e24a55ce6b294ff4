"""How a site with little of its budget left still takes part in a whole run: with more noise than the plan asks for."""

from dataclasses import replace

from fedglm.privacy.accounting.accountant import is_within_budget
from fedglm.privacy.accounting.calibration import calibrate
from fedglm.privacy.dp.mechanism import Event, Mechanism
from fedglm.privacy.ledger.charges import Budget
from fedglm.privacy.ledger.spending import Spending
from fedglm.privacy.policy.run_plan import RunPlan


def noise_for_remaining_budget(plan: RunPlan, spending: Spending, budget: Budget) -> Mechanism | None:
    """The noise with which what is left of a budget lasts for all rounds that a node may take part in.

    It is the plan's, or what the site has taken in this run before, where that lasts. Where it takes more, but no more
    than the plan's `max_noise_multiplier`, it is the least that lasts. Beyond that so noisy an update would help
    nobody, and the site takes part with the plan's noise until its budget ends.

    Args:
        plan: Of the run.
        spending: Of the data set, so far.
        budget: What the data set may spend in its life.

    Returns:
        The plan's mechanism with that noise; None where the plan has none.
    """
    noise = plan.spec.noise
    announced, greatest = noise.mechanism, noise.max_noise_multiplier
    if announced is None or greatest is None:
        return announced
    if spending.without_noise:
        return announced  # no amount of it keeps the promise now
    earlier = spending.events
    own = [row.charge for row in spending.rows if row.charge.run == plan.run and row.charge.purpose == "update"]
    # A server that went back to an older checkpoint may ask for more rounds than it announced.
    left = max(1, noise.max_participations - len(own))
    if noise.metrics is not None:
        earlier.append(replace(noise.metrics.event(), steps=left))
    current = own[-1].mechanism if own and own[-1].mechanism is not None else announced
    current = replace(announced, noise_multiplier=max(current.noise_multiplier, announced.noise_multiplier))
    steps = left * current.steps

    def lasts(multiplier: float) -> bool:
        return is_within_budget(
            [*earlier, Event(multiplier, current.sampling_rate, steps)], budget.epsilon, budget.delta
        )

    if lasts(current.noise_multiplier):
        return current
    if greatest <= current.noise_multiplier or not lasts(greatest):
        return announced
    multiplier = calibrate(budget.epsilon, budget.delta, current.sampling_rate, steps, earlier)
    return replace(announced, noise_multiplier=min(multiplier, greatest))
