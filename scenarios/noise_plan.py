"""What stands for the sites' privacy officers in a simulation: each site's policy, and a plan that they all permit."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedglm.autoglm.federation import SiteRecords
from fedglm.compression.layout import Layout
from fedglm.privacy.accounting.accountant import usual_delta
from fedglm.privacy.accounting.calibration import calibrate
from fedglm.privacy.accounting.statement import (
    MIN_EPSILON,
    NO_GUARANTEE,
    NO_GUARANTEE_AGAINST_SERVER,
    Statement,
    client_guarantee,
    guarantee,
)
from fedglm.privacy.custody.store import initialize, is_established
from fedglm.privacy.dp.mechanism import Event, Mechanism, metrics_mechanism
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.policy.policy import ANY, Policy
from fedglm.scenarios.scenario import Scenario, ScenarioError
from fedglm.server.rounds.participants import drawn

_HEADROOM = 8192
"""Bytes that a site lets out beyond dense float32 of the model."""


def unit_of(scenario: Scenario) -> str:
    """What is protected.

    Raises:
        ScenarioError: `privacy.unit` is not what the data tell apart.
    """
    kept = scenario.data.unit_field or "record"
    if scenario.privacy.unit not in (None, kept):
        raise ScenarioError(
            f"privacy.unit is {scenario.privacy.unit!r}, but the data tell units apart by {kept!r}: set data.unit_field"
        )
    return kept


def declared_units(site: SiteRecords) -> int:
    """The number of units that a simulated site makes public: the true one, rounded to two digits."""
    units = len(np.unique(site.train.units.numpy()))
    step = 10 ** max(0, math.floor(math.log10(max(units, 1))) - 1)
    return max(1, int(round(units / step) * step))


def declared_examples(scenario: Scenario, site: SiteRecords) -> int:
    """The public weight of a simulated site: a count of its units where noise protects them, else of its examples."""
    if scenario.federation.weighting != "declared":
        return 0
    return len(site.train) if scenario.privacy.epsilon is None else declared_units(site)


def delta_of(scenario: Scenario, sites: tuple[SiteRecords, ...]) -> float:
    """The delta of a run: the scenario's, or 1 / (10 x units) of the smallest site, rounded down to one digit."""
    if scenario.privacy.delta is not None:
        return scenario.privacy.delta
    return usual_delta(min(declared_units(site) for site in sites))


@dataclass(frozen=True)
class PlannedNoise:
    """What the server's plan says of noise; see `privacy.policy.run_plan.RunPlan`.

    Attributes:
        turns: Most rounds that one node takes part in.
        mechanism: On updates; None for none.
        noise_at_most: Most of it that is of use.
        metrics: On measures; None where there are none, or no noise.
    """

    turns: int
    mechanism: Mechanism | None = None
    noise_at_most: float | None = None
    metrics: Mechanism | None = None


def plan_noise(scenario: Scenario, sites: tuple[SiteRecords, ...], delta: float) -> PlannedNoise:
    """How nodes add noise, calibrated so that no site spends more than the scenario's epsilon in the whole run.

    A step samples `training.batch_size` units of a site of mean size. Sampling of nodes is not counted as protection:
    the node that takes part most often sets the noise.

    Args:
        scenario: What is asked for.
        sites: All sites.
        delta: The delta that epsilon holds at.

    Raises:
        PrivacyError: No noise keeps to so little epsilon.
    """
    mean = sum(declared_units(site) for site in sites) / len(sites)
    return calibrated_noise(scenario, _most_turns(scenario, len(sites)), mean, delta)


def calibrated_noise(scenario: Scenario, turns: int, units: float, delta: float) -> PlannedNoise:
    """How nodes of `units` units add noise that take part in at most `turns` rounds.

    Raises:
        PrivacyError: No noise keeps to so little epsilon.
    """
    training, private = scenario.training, scenario.privacy
    epsilon = private.epsilon
    if epsilon is None:
        return PlannedNoise(turns)
    rate = min(1.0, training.batch_size / units)
    measures = []
    if scenario.federation.node_metrics:
        share = max(MIN_EPSILON, private.metrics_share * epsilon)
        measures = [Event(calibrate(share, delta, 1.0, turns), 1.0, turns)]
    mechanism = Mechanism(
        sampling_rate=rate,
        steps=training.local_steps,
        clipping_norm=private.clipping_norm,
        noise_multiplier=calibrate(epsilon, delta, rate, turns * training.local_steps, measures),
        unit=unit_of(scenario),
        records_per_unit=private.records_per_unit,
    )
    return PlannedNoise(
        turns,
        mechanism,
        private.noise_slack * mechanism.noise_multiplier,
        metrics_mechanism(mechanism, measures[0].noise_multiplier) if measures else None,
    )


def _most_turns(scenario: Scenario, nodes: int) -> int:
    """Rounds of the node that takes part most often; all of them where the draws are secret, for nobody can count."""
    federation = scenario.federation
    if scenario.client_privacy.epsilon is not None:
        return federation.rounds
    turns = np.zeros(nodes, np.int64)
    for number in range(1, federation.rounds + 1):
        turns[drawn(nodes, federation.cohort_size(nodes), federation.seed, number)] += 1
    return int(turns.max())


def server_key(path: Path) -> SigningKey:
    """The key that signs the run's plan, made when it is first asked for."""
    return SigningKey.load(path) if path.exists() else SigningKey.create(path)


def establish_site(
    folder: Path,
    scenario: Scenario,
    site: SiteRecords,
    *,
    key: SigningKey,
    layout: Layout,
    planned: PlannedNoise,
    delta: float,
) -> None:
    """Give a simulated site a policy that permits just this run, unless an earlier process has."""
    if is_established(folder):
        return
    private: dict[str, Any] = {}
    mechanism, metrics = planned.mechanism, planned.metrics
    if mechanism is not None:
        private = {
            "epsilon": scenario.privacy.epsilon,
            "delta": delta,
            "unit": mechanism.unit,
            "records_per_unit_at_most": mechanism.records_per_unit,
            "noise_multiplier_at_least": min(each.noise_multiplier for each in (mechanism, metrics) if each),
            "clipping_norm_at_most": mechanism.clipping_norm,
        }
    policy = Policy(
        data_set=site.name,
        declare_units=declared_units(site) if mechanism is not None else len(site.train),
        without_differential_privacy=mechanism is None,
        steps_at_most=scenario.training.local_steps,
        servers=(key.public.hex,),
        plans=(ANY,),
        models=(layout.sha256,),
        codecs=(scenario.update.codec,),
        bytes_at_most=4 * layout.size + _HEADROOM,
        metrics=("loss", "metric", "count") if scenario.federation.node_metrics else (),
        **private,
    )
    initialize(folder, policy, name=site.name)


def statements(scenario: Scenario, delta: float | None, nodes: int) -> list[Statement]:
    """What a run may say of its privacy: of the sites' noise, and of the server's where it adds some.

    Args:
        scenario: Of the run.
        delta: At which the sites' epsilon holds; None where they add no noise.
        nodes: How many there are.
    """
    private, client = scenario.privacy, scenario.client_privacy
    if private.epsilon is None or delta is None:
        stated = [NO_GUARANTEE if client.epsilon is None else NO_GUARANTEE_AGAINST_SERVER]
    else:
        stated = [guarantee(private.epsilon, delta, unit_of(scenario))]
    if client.epsilon is not None:
        stated.append(client_guarantee(client.epsilon, client.delta_of(nodes)))
    return stated


def greatest_epsilon(ledgers: list[Ledger], delta: float) -> float:
    """The greatest epsilon that these ledgers show; each holds one data set."""
    worst = 0.0
    for ledger in ledgers:
        rows = ledger.rows()
        if rows:
            worst = max(worst, ledger.spending(rows[0].charge.data_set).at(delta).epsilon)
    return worst
