"""Attacks on a run's first updates, with and without noise and compression, side by side.

Each setting trains one round from the run's starting weights, by the code that nodes run, on half of a site's records;
the attacks themselves are in `attacked_site`. Noise is that of the run's plan, so that one round spends less than the
run's epsilon: the settings' names give both figures.

A failed attack proves nothing. These attacks are cheap, and yet those on tokens, and on membership by gradients, expose
a site that nothing protects.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from fedglm.audit.empirical.attacked_site import ATTACKS, AttackedSite, AttackSetting, NotAttackable
from fedglm.audit.empirical.audited_run import AuditedRun, open_run
from fedglm.audit.empirical.probe import DoesNotFit
from fedglm.audit.empirical.results import ATTACK, AttackAudit, AttackFigures
from fedglm.audit.empirical.scores import Auc, average_auc
from fedglm.autoglm.training.local import TrainingError
from fedglm.privacy.accounting.accountant import choose_default_delta, compute_epsilon
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.run_folder.names import AUDIT
from fedglm.run_folder.record import ReportError
from fedglm.scenarios.noise_plan import delta_of, plan_noise
from fedglm.server.deployment.run_file import RunFile

DEFAULT_EPSILON: Final = 8.0
"""Epsilon of the settings with noise, if the run itself has none."""

_MAX_SITES: Final = 4


class AttackNoise(NamedTuple):
    """Noise of the settings that have any.

    Attributes:
        mechanism: Mechanism of one round, as in the run's plan.
        epsilon: Epsilon of the whole run.
        round_epsilon: Epsilon of the one round that is attacked.
        delta: Delta of both.
    """

    mechanism: Mechanism
    epsilon: float
    round_epsilon: float
    delta: float


def attack_run(run: Path, on_progress: Callable[[str], None] = lambda _: None) -> AttackAudit:
    """Try all attacks on a run's first round, and write what they achieve into the run's folder.

    Args:
        run: Folder of the run.
        on_progress: Callback for the names of the next site and setting.

    Raises:
        ReportError: The folder holds no run that can be attacked, or no site of it has two records.
    """
    audited = open_run(run, ATTACK)
    noise = choose_noise(audited)
    settings = make_settings(noise, audited.built.scenario.update.codec)
    areas: dict[tuple[str, str], list[Auc]] = {}
    left_out: dict[tuple[str, str], list[str]] = {}
    for site in audited.built.data.sites[:_MAX_SITES]:
        # One site after the other: what is computed once for all settings of a site takes up to 2 GiB.
        try:
            attacked = AttackedSite(audited, site)
        except NotAttackable as exc:
            left_out.setdefault(("all attacks", str(exc)), []).append(site.name)
            continue
        for setting in settings:
            on_progress(f"{site.name}: {setting.name}")
            update = attacked.make_update(setting, attacked.trained, 0)
            for name, attack in ATTACKS.items():
                try:
                    areas.setdefault((name, setting.name), []).append(attack(attacked, setting, update))
                except (NotAttackable, DoesNotFit, TrainingError) as exc:
                    sites = left_out.setdefault((name, str(exc)), [])
                    sites += [site.name] if site.name not in sites else []
    audit = AttackAudit(
        **audited.make_header(),
        left_out=tuple(f"{name}, at {', '.join(sites)}: {why}" for (name, why), sites in left_out.items()),
        epsilon=noise.epsilon,
        round_epsilon=noise.round_epsilon,
        delta=noise.delta,
        results=_collect_figures(settings, areas, left_out),
    )
    audit.write(run / AUDIT / ATTACK)
    return audit


def choose_noise(audited: AuditedRun) -> AttackNoise:
    """Return the noise of a run's plan; for a run without noise, the noise that epsilon 8 would need."""
    scenario, sites = audited.built.scenario, tuple(audited.built.data.sites)
    private = scenario.privacy
    epsilon = DEFAULT_EPSILON if private.epsilon is None else private.epsilon
    planned = RunFile.load(audited.folder).spec.noise.mechanism if audited.records == "stand-in" else None
    if (
        planned is not None
    ):  # the plan's noise is for the units that its sites declare, not for the records that stand in
        mechanism = planned
        delta = private.delta or choose_default_delta(private.units or 1)
    else:
        scenario = scenario.model_copy(update={"privacy": private.model_copy(update={"epsilon": epsilon})})
        delta = delta_of(scenario, sites)
        noised = plan_noise(scenario, sites, delta).mechanism
        if noised is None:
            raise ReportError("a scenario with an epsilon plans no noise")
        mechanism = noised
    return AttackNoise(mechanism, epsilon, compute_epsilon([mechanism.event()], delta).epsilon, delta)


def make_settings(noise: AttackNoise, codec: str) -> list[AttackSetting]:
    """Return the four settings: with and without noise, with and without compression."""
    noised = f"noise of epsilon {noise.epsilon:g} (this round {noise.round_epsilon:.2f})"
    return [
        AttackSetting("no noise, dense", None, coded=False),
        AttackSetting(f"no noise, {codec}", None, coded=True),
        AttackSetting(f"{noised}, dense", noise.mechanism, coded=False),
        AttackSetting(f"{noised}, {codec}", noise.mechanism, coded=True),
    ]


def _collect_figures(
    settings: list[AttackSetting], areas: dict[tuple[str, str], list[Auc]], left_out: dict[tuple[str, str], list[str]]
) -> tuple[AttackFigures, ...]:
    """Average each attack's areas over the sites.

    Raises:
        ReportError: No attack was possible.
    """
    results = []
    for setting in settings:
        for name in ATTACKS:
            if site_areas := areas.get((name, setting.name)):
                mean = average_auc(site_areas)
                results.append(
                    AttackFigures(
                        attack=name,
                        variant=setting.name,
                        private=setting.mechanism is not None,
                        coded=setting.coded,
                        auc=mean.value,
                        low=mean.low,
                        high=mean.high,
                    )
                )
    if not results:
        reasons = "; ".join(dict.fromkeys(why for _, why in left_out))
        raise ReportError(f"nothing of the run can be attacked: {reasons}")
    return tuple(results)
