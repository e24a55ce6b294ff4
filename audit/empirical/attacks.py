"""Attacks on a run's first updates, with and without noise and compression, side by side.

Each variant trains one round from the run's starting weights, by the code that nodes run, on half of a site's records;
the attacks themselves are in `attacked_site`. Noise is that of the run's plan, so that one round of it spends less than
the run's epsilon: variants are named after both.

Whoever fails to attack has proved nothing. These attacks are cheap, and yet those on tokens, and on membership by
gradients, give a site away where nothing protects it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from fedglm.audit.empirical.attacked_site import ATTACKS, AttackedSite, AttackSetting, TooLittle
from fedglm.audit.empirical.audited_run import AuditedRun, open_run
from fedglm.audit.empirical.probe import DoesNotFit
from fedglm.audit.empirical.results import ATTACK, AttackAudit, AttackFigures
from fedglm.audit.empirical.scores import Auc, mean_auc
from fedglm.autoglm.training.local import TrainingError
from fedglm.privacy.accounting.accountant import spent, usual_delta
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.run_folder.names import AUDIT
from fedglm.run_folder.record import ReportError
from fedglm.scenarios.noise_plan import delta_of, plan_noise
from fedglm.server.deployment.run_file import RunFile

DEFAULT_EPSILON: Final = 8.0
"""Of the variants with noise, where the run itself has none."""

_MAX_SITES: Final = 4


class Noise(NamedTuple):
    """What the variants with noise have.

    Attributes:
        mechanism: Of a round, as in the run's plan.
        epsilon: Of the whole run.
        round_epsilon: Of the one round that is attacked.
        delta: At which both hold.
    """

    mechanism: Mechanism
    epsilon: float
    round_epsilon: float
    delta: float


def attack_run(run: Path, told: Callable[[str], None] = lambda _: None) -> AttackAudit:
    """Try all attacks on a run's first round, and keep what they achieve in the run's folder.

    Args:
        run: A run's folder.
        told: Hears what is done next.

    Raises:
        ReportError: The folder holds no run that can be attacked, or no site of it has two records.
    """
    audited = open_run(run, ATTACK)
    noise = noise_of(audited)
    tried = variants(noise, audited.stage.scenario.update.codec)
    found: dict[tuple[str, str], list[Auc]] = {}
    left_out: dict[tuple[str, str], list[str]] = {}
    for site in audited.stage.data.sites[:_MAX_SITES]:
        # One site after the other: what is computed once for all variants of one takes up to 2 GiB.
        try:
            attacked = AttackedSite(audited, site)
        except TooLittle as exc:
            left_out.setdefault(("all attacks", str(exc)), []).append(site.name)
            continue
        for variant in tried:
            told(f"{site.name}: {variant.name}")
            update = attacked.updated(variant, attacked.trained, 0)
            for name, attack in ATTACKS.items():
                try:
                    found.setdefault((name, variant.name), []).append(attack(attacked, variant, update))
                except (TooLittle, DoesNotFit, TrainingError) as exc:
                    sites = left_out.setdefault((name, str(exc)), [])
                    sites += [site.name] if site.name not in sites else []
    audit = AttackAudit(
        **audited.stamp(),
        left_out=tuple(f"{name}, at {', '.join(sites)}: {why}" for (name, why), sites in left_out.items()),
        epsilon=noise.epsilon,
        round_epsilon=noise.round_epsilon,
        delta=noise.delta,
        results=_results(tried, found, left_out),
    )
    audit.write(run / AUDIT / ATTACK)
    return audit


def noise_of(audited: AuditedRun) -> Noise:
    """The noise of a run's plan; of epsilon 8 where it has none."""
    scenario, sites = audited.stage.scenario, tuple(audited.stage.data.sites)
    private = scenario.privacy
    epsilon = DEFAULT_EPSILON if private.epsilon is None else private.epsilon
    planned = RunFile.load(audited.folder).spec.noise.mechanism if audited.records == "stand-in" else None
    if planned is not None:  # by the units that its sites declare, not by those that stand in
        mechanism = planned
        delta = private.delta or usual_delta(private.units or 1)
    else:
        scenario = scenario.model_copy(update={"privacy": private.model_copy(update={"epsilon": epsilon})})
        delta = delta_of(scenario, sites)
        noised = plan_noise(scenario, sites, delta).mechanism
        if noised is None:
            raise ReportError("a scenario with an epsilon plans no noise")
        mechanism = noised
    return Noise(mechanism, epsilon, spent([mechanism.event()], delta).epsilon, delta)


def variants(noise: Noise, codec: str) -> list[AttackSetting]:
    """With and without noise, with and without compression."""
    noised = f"noise of epsilon {noise.epsilon:g} (this round {noise.round_epsilon:.2f})"
    return [
        AttackSetting("no noise, dense", None, coded=False),
        AttackSetting(f"no noise, {codec}", None, coded=True),
        AttackSetting(f"{noised}, dense", noise.mechanism, coded=False),
        AttackSetting(f"{noised}, {codec}", noise.mechanism, coded=True),
    ]


def _results(
    tried: list[AttackSetting], found: dict[tuple[str, str], list[Auc]], left_out: dict[tuple[str, str], list[str]]
) -> tuple[AttackFigures, ...]:
    results = []
    for variant in tried:
        for name in ATTACKS:
            if areas := found.get((name, variant.name)):
                whole = mean_auc(areas)
                results.append(
                    AttackFigures(
                        attack=name,
                        variant=variant.name,
                        private=variant.mechanism is not None,
                        coded=variant.coded,
                        auc=whole.value,
                        low=whole.low,
                        high=whole.high,
                    )
                )
    if not results:
        reasons = "; ".join(dict.fromkeys(why for _, why in left_out))
        raise ReportError(f"nothing of the run can be attacked: {reasons}")
    return tuple(results)
