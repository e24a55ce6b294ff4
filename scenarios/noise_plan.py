"""Privacy in a simulation, in place of the sites' privacy officers: a noise plan, and a policy for each site."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from fedglm.autoglm.federation import SiteRecords
from fedglm.compression.layout import Layout
from fedglm.privacy.accounting.accountant import choose_default_delta
from fedglm.privacy.accounting.calibration import calibrate
from fedglm.privacy.accounting.statement import (
    NO_GUARANTEE,
    NO_GUARANTEE_AGAINST_SERVER,
    Statement,
    state_client_guarantee,
    state_unit_guarantee,
)
from fedglm.privacy.custody.store import initialize, is_initialized
from fedglm.privacy.dp.mechanism import Event, Mechanism, make_metrics_mechanism
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.policy.policy import ANY, Policy
from fedglm.privacy.policy.run_spec import NoisePlan, RunSpec
from fedglm.privacy.settings import MIN_EPSILON
from fedglm.scenarios.scenario import Scenario, ScenarioError
from fedglm.server.rounds.participants import draw_indices

_HEADROOM = 8192
"""Bytes that a simulated site's policy allows in an update beyond dense float32 of the model."""


def unit_of(scenario: Scenario) -> str:
    """Return the privacy unit: the field that identifies it, or `record`.

    Raises:
        ScenarioError: `privacy.unit` is not the unit by which the data are grouped.
    """
    unit = scenario.data.unit_field or "record"
    if scenario.privacy.unit not in (None, unit):
        raise ScenarioError(
            f"privacy.unit is {scenario.privacy.unit!r}, but the data tell units apart by {unit!r}: set data.unit_field"
        )
    return unit


def declared_units(site: SiteRecords) -> int:
    """Return the number of units that a simulated site declares: the true number, rounded to two digits."""
    units = len(np.unique(site.train.units.numpy()))
    step = 10 ** max(0, math.floor(math.log10(max(units, 1))) - 1)
    return max(1, int(round(units / step) * step))


def declared_examples(scenario: Scenario, site: SiteRecords) -> int:
    """Return a simulated site's public weight: its units if noise protects them, else its examples; 0 if undeclared."""
    if scenario.federation.weighting != "declared":
        return 0
    return len(site.train) if scenario.privacy.epsilon is None else declared_units(site)


def delta_of(scenario: Scenario, sites: tuple[SiteRecords, ...]) -> float:
    """Return a run's delta: the scenario's, or 1 / (10 x units) of the smallest site, rounded down to one digit."""
    if scenario.privacy.delta is not None:
        return scenario.privacy.delta
    return choose_default_delta(min(declared_units(site) for site in sites))


def plan_noise(scenario: Scenario, sites: tuple[SiteRecords, ...], delta: float) -> NoisePlan:
    """Calibrate the noise so that no site spends more than the scenario's epsilon in the whole run.

    A step samples `training.batch_size` units of a site of mean size. The sampling of nodes does not count as
    amplification: the noise is calibrated for the node that takes part most often.

    Args:
        scenario: Scenario of the run.
        sites: All sites.
        delta: Delta at which epsilon is guaranteed.

    Raises:
        PrivacyError: No noise multiplier keeps the run within so small an epsilon.
    """
    mean = sum(declared_units(site) for site in sites) / len(sites)
    return calibrate_noise(scenario, _max_participations(scenario, len(sites)), mean, delta)


def calibrate_noise(scenario: Scenario, participations: int, units: float, delta: float) -> NoisePlan:
    """Calibrate the noise of nodes that take part in at most `participations` rounds.

    Args:
        scenario: Scenario of the run.
        participations: Maximum number of rounds of a node.
        units: Number of units of a node, from which the sampling rate follows.
        delta: Delta at which epsilon is guaranteed.

    Raises:
        PrivacyError: No noise multiplier keeps the run within so small an epsilon.
    """
    training, private = scenario.training, scenario.privacy
    epsilon = private.epsilon
    if epsilon is None:
        return NoisePlan(max_participations=participations)
    rate = min(1.0, training.batch_size / units)
    measures = []
    if scenario.federation.node_metrics:
        share = max(MIN_EPSILON, private.metrics_share * epsilon)
        measures = [Event(calibrate(share, delta, 1.0, participations), 1.0, participations)]
    mechanism = Mechanism(
        sampling_rate=rate,
        steps=training.local_steps,
        clipping_norm=private.clipping_norm,
        noise_multiplier=calibrate(epsilon, delta, rate, participations * training.local_steps, measures),
        unit=unit_of(scenario),
        records_per_unit=private.records_per_unit,
    )
    return NoisePlan(
        max_participations=participations,
        mechanism=mechanism,
        max_noise_multiplier=private.noise_slack * mechanism.noise_multiplier,
        metrics=make_metrics_mechanism(mechanism, measures[0].noise_multiplier) if measures else None,
    )


def run_spec(scenario: Scenario, noise: NoisePlan, recipe: str = "") -> RunSpec:
    """Define a scenario's run.

    Args:
        scenario: Scenario of the run.
        noise: Noise plan of the nodes.
        recipe: TOML by which nodes build model and training; empty where they have the scenario itself.
    """
    return RunSpec(
        rounds=scenario.federation.rounds,
        local_steps=scenario.training.local_steps,
        noise=noise,
        codec=scenario.update.codec,
        density=scenario.update.effective_density,
        recipe=recipe,
    )


def _max_participations(scenario: Scenario, nodes: int) -> int:
    """Count the rounds of the node that takes part most often; all rounds where the sampling of nodes is secret."""
    federation = scenario.federation
    if scenario.client_privacy.epsilon is not None:
        return federation.rounds
    count = np.zeros(nodes, np.int64)
    for number in range(1, federation.rounds + 1):
        count[draw_indices(nodes, federation.cohort_size(nodes), federation.seed, number)] += 1
    return int(count.max())


def server_key(path: Path) -> SigningKey:
    """Load the key that signs the run's plan; create it on first use."""
    return SigningKey.load(path) if path.exists() else SigningKey.create(path)


def establish_site(
    folder: Path,
    scenario: Scenario,
    site: SiteRecords,
    *,
    key: SigningKey,
    layout: Layout,
    planned: NoisePlan,
    delta: float,
) -> None:
    """Give a simulated site a policy that permits this run alone, unless an earlier process has done so."""
    if is_initialized(folder):
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


def state_guarantees(scenario: Scenario, delta: float | None, nodes: int) -> list[Statement]:
    """State the privacy guarantees of a run: that of the sites' noise, then that of the server's where it adds some.

    Args:
        scenario: Scenario of the run.
        delta: Delta of the sites' guarantee; None where they add no noise.
        nodes: Number of nodes.
    """
    private, client = scenario.privacy, scenario.client_privacy
    if private.epsilon is None or delta is None:
        statements = [NO_GUARANTEE if client.epsilon is None else NO_GUARANTEE_AGAINST_SERVER]
    else:
        statements = [state_unit_guarantee(private.epsilon, delta, unit_of(scenario))]
    if client.epsilon is not None:
        statements.append(state_client_guarantee(client.epsilon, client.compute_delta(nodes)))
    return statements


def max_epsilon(ledgers: list[Ledger], delta: float) -> float:
    """Return the largest epsilon spent in these ledgers, each of which has one data set."""
    largest = 0.0
    for ledger in ledgers:
        rows = ledger.rows()
        if rows:
            largest = max(largest, ledger.spending(rows[0].charge.data_set).at(delta).epsilon)
    return largest
