"""What a server that is honest but curious could read from one update, with and without noise and compression.

Each variant trains one round from the run's starting weights, by the code that nodes run, on half of a site's records:

    tokens       which tokens the records hold, by the norms of the embedding's rows (Melis et al., arXiv 1805.04049)
    members      which records were trained on, by how an update lies to a record's gradient; by the loss of the model
                 with the update; and the former against shadow updates (LiRA)
    one record   the tokens of a site that has one record alone and takes one step: inversion in closed form

Whoever fails to attack has proved nothing. These are the cheap attacks that work where nothing protects.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from fedglm.autoglm.data import Site
from fedglm.autoglm.examples import Examples
from fedglm.autoglm.parameters import load_vector
from fedglm.client.audit_bench import Bench
from fedglm.client.precision import choose_precision
from fedglm.client.private_training import train_privately
from fedglm.client.training import round_seed, train_locally
from fedglm.compression.codec import decode
from fedglm.compression.settings import UpdateSettings
from fedglm.privacy.attack_scores import Auc, auc, likelihood_ratios, mean_auc
from fedglm.privacy.durable import write_atomically
from fedglm.privacy.mechanism import Mechanism
from fedglm.privacy.signed_log import AUDIT
from fedglm.server.rows import to_json
from fedglm.simulations.empirical import ATTACK
from fedglm.simulations.nodes import Stage, build_stage
from fedglm.simulations.privacy import declared_units, delta_of, plan_noise
from fedglm.simulations.run_record import ReportError
from fedglm.simulations.scenario import Scenario

Vector = npt.NDArray[np.float32]

DEFAULT_EPSILON: Final = 8.0
"""Of the variants with noise, where the run itself has none."""

_MOST_SITES: Final = 4
_CANDIDATES: Final = 60
_SHADOWS: Final = 8
_MOST_VALUES: Final = 2**28
"""Of all candidates' gradients, in float64: 2 GiB."""


@dataclass(frozen=True)
class Variant:
    """A way to make an update.

    Attributes:
        name: For people.
        mechanism: How noise is added; None for none.
        coded: By the run's codec; else as it is.
    """

    name: str
    mechanism: Mechanism | None
    coded: bool


@dataclass(frozen=True)
class AttackResult:
    """What one attack achieves on one variant.

    Attributes:
        attack: Its name.
        variant: Of the update.
        private: Whether that has noise.
        coded: Whether it is compressed.
        auc: Area under the ROC curve, 0.5 for guesses.
        low: Lower end of its 95 % confidence interval.
        high: Upper end.
    """

    attack: str
    variant: str
    private: bool
    coded: bool
    auc: float
    low: float
    high: float


def attack_run(run: Path, told: Callable[[str], None] = lambda _: None) -> list[AttackResult]:
    """Try all attacks on a run's first round, and keep what they achieve in the run's folder.

    Args:
        run: A run's folder.
        told: Hears what is done next.

    Raises:
        ReportError: The folder holds no run.
    """
    path = run / "scenario.toml"
    if not path.is_file():
        raise ReportError(f"{run} holds no run: name a folder that fedglm simulate or fedglm run has made")
    torch.set_num_threads(1)
    stage = build_stage(Scenario.from_toml(path.read_text(), origin=str(path)).to_toml())
    sites = stage.data.sites[:_MOST_SITES]
    found = []
    for variant in variants(stage):
        told(variant.name)
        attacked = [_Attacked(stage, site, variant) for site in sites]
        for name, attack in _ATTACKS.items():
            areas = [area for one in attacked if (area := attack(one)) is not None]
            if areas:
                whole = mean_auc(areas)
                noised = variant.mechanism is not None
                found.append(
                    AttackResult(name, variant.name, noised, variant.coded, whole.value, whole.low, whole.high)
                )
    write_atomically(run / AUDIT / ATTACK, to_json(to_fields(found), indent=1) + "\n")
    return found


def variants(stage: Stage) -> list[Variant]:
    """With and without noise, with and without compression."""
    scenario, sites = stage.scenario, tuple(stage.data.sites)
    if scenario.privacy.epsilon is None:
        private = scenario.privacy.model_copy(update={"epsilon": DEFAULT_EPSILON})
        scenario = scenario.model_copy(update={"privacy": private})
    noise = plan_noise(scenario, sites, delta_of(scenario, sites)).mechanism
    epsilon, codec = scenario.privacy.epsilon, scenario.update.codec
    return [
        Variant("no noise, dense", None, coded=False),
        Variant(f"no noise, {codec}", None, coded=True),
        Variant(f"epsilon {epsilon:g}, dense", noise, coded=False),
        Variant(f"epsilon {epsilon:g}, {codec}", noise, coded=True),
    ]


def to_fields(found: list[AttackResult]) -> dict[str, Any]:
    """As plain values, with a sentence for each attack."""
    attacks = []
    for name in dict.fromkeys(result.attack for result in found):
        own = [result for result in found if result.attack == name]
        bare = max((result.auc for result in own if not result.private), default=0.5)
        noised = max((result.auc for result in own if result.private), default=0.5)
        said = f"AUC {bare:.2f} without noise, {noised:.2f} with it, where guesses have 0.50"
        attacks.append({"name": name, "said": said, "without": bare, "with": noised})
    return {"attacks": attacks, "results": [asdict(result) for result in found]}


class _Attacked:
    """A site whose update is attacked: half of its records were trained on, the other half was not."""

    def __init__(self, stage: Stage, site: Site, variant: Variant) -> None:
        self._stage, self._site, self._variant = stage, site, variant
        order = np.random.default_rng([stage.scenario.federation.seed, 4711]).permutation(len(site.train))
        half = len(order) // 2
        self.trained, self.others = site.train.select(order[:half]), site.train.select(order[half : 2 * half])
        self.update = self.updated(self.trained, 0)

    def updated(self, records: Examples, number: int, *, steps: int | None = None) -> Vector:
        """The update that a node would send for these records, decoded."""
        stage, scenario, bench = self._stage, self._stage.scenario, self._stage.workbench
        training, mechanism, rate = scenario.training, self._variant.mechanism, scenario.training.learning_rate
        device = training.torch_device()
        if mechanism is None:
            precision = choose_precision("fp32", bench.layout.size, device, private=False)
            seed = round_seed(scenario.federation.seed, self._site.name, number)
            made = train_locally(
                bench.model, stage.data.task, records, bench.initial, training, precision,
                learning_rate=rate, seed=seed, steps=steps,
            )  # fmt: skip
        else:
            precision = choose_precision("fp32", bench.layout.size, device, private=True)
            own = mechanism if steps is None else replace(mechanism, steps=steps)
            made = train_privately(
                bench.model, stage.data.task, records, bench.initial, training, precision, own,
                learning_rate=rate, declared_units=declared_units(self._site),
            )  # fmt: skip
        if not self._variant.coded:
            return made.delta
        settings: UpdateSettings = scenario.update
        codec = settings.make_codec(bench.layout)
        return decode(codec.encode(made.delta), size=bench.layout.size).to_dense()

    def tokens(self, records: Examples, update: Vector) -> Auc | None:
        """Which tokens some records hold, by the rows of an update's embedding."""
        rows, start = self._embedding(update), self._embedding(self._stage.workbench.initial)
        task = self._stage.data.task
        if rows is None or start is None:
            return None
        # Weight decay moves every row by one share of itself; who knows the starting weights takes that away.
        shares = (rows * start).sum(axis=1) / np.maximum((start * start).sum(axis=1), 1e-30)
        rows = rows - np.median(shares) * start
        known = np.setdiff1d(np.arange(len(rows)), (task.pad_id, task.bos_id, task.eos_id))
        used = records.input_ids[torch.arange(records.input_ids.shape[1]) < records.lengths[:, None]]
        held = np.isin(known, used.numpy())
        if min(held.sum(), (~held).sum()) < 2:
            return None
        return auc(np.linalg.norm(rows[known].astype(np.float64), axis=1), held)

    def alignment(self, update: Vector, gradients: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """How far the update goes down each record's gradient."""
        norms = np.linalg.norm(gradients, axis=1) * max(float(np.linalg.norm(update)), 1e-30)
        return np.asarray(-(gradients @ update.astype(np.float64)) / np.maximum(norms, 1e-30), np.float64)

    def candidates(self) -> tuple[Examples, npt.NDArray[np.bool_]]:
        """Records to be told apart, and which of them were trained on."""
        from fedglm.client.audit_bench import joined

        fit = max(2, _MOST_VALUES // self._stage.workbench.layout.size)
        count = min(_CANDIDATES // 2, len(self.trained), len(self.others), fit // 2)
        both = joined(self.trained.select(range(count)), self.others.select(range(count)))
        return both, np.arange(2 * count) < count

    def gradients(self, records: Examples) -> npt.NDArray[np.float64]:
        """(n, d) of the starting weights."""
        bench = self._stage.workbench
        own = Bench(bench.model, self._stage.data.task, records, bench.initial)
        return np.stack([own.gradient(records.select([number])) for number in range(len(records))])

    def losses(self, records: Examples) -> npt.NDArray[np.float64]:
        """(n,) of the starting weights moved by the update."""
        bench = self._stage.workbench
        load_vector(bench.model, bench.initial + self.update)
        losses, _ = self._stage.data.task.measure(bench.model, records)
        return np.asarray(losses.numpy(), np.float64)

    def shadows(self, records: Examples) -> tuple[npt.NDArray[np.bool_], list[Vector]]:
        """Updates for random halves of the candidates, and which records each was trained on."""
        dice = np.random.default_rng([self._stage.scenario.federation.seed, 815])
        inside = np.stack([dice.permutation(len(records)) < len(records) // 2 for _ in range(_SHADOWS // 2)])
        inside = np.concatenate([inside, ~inside])
        made = [self.updated(records.select(np.flatnonzero(row)), n) for n, row in enumerate(inside, 1)]
        return inside, made

    def _embedding(self, update: Vector) -> Vector | None:
        layout, start = self._stage.workbench.layout, 0
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            size = int(np.prod(shape))
            if name.endswith("embed_tokens.weight"):
                return update[start : start + size].reshape(shape)
            start += size
        return None


def _tokens(one: _Attacked) -> Auc | None:
    return one.tokens(one.trained, one.update)


def _one_record(one: _Attacked) -> Auc | None:
    areas = []
    for number in range(4):
        record = one.trained.select([number])
        if (area := one.tokens(record, one.updated(record, number, steps=1))) is not None:
            areas.append(area)
    return mean_auc(areas) if areas else None


def _members(one: _Attacked) -> Auc:
    records, truth = one.candidates()
    return auc(one.alignment(one.update, one.gradients(records)), truth)


def _by_loss(one: _Attacked) -> Auc:
    records, truth = one.candidates()
    return auc(-one.losses(records), truth)


def _by_shadows(one: _Attacked) -> Auc:
    records, truth = one.candidates()
    gradients = one.gradients(records)
    inside, updates = one.shadows(records)
    known = np.stack([one.alignment(update, gradients) for update in updates])
    return auc(likelihood_ratios(one.alignment(one.update, gradients), known, inside), truth)


_ATTACKS: Final[dict[str, Callable[[_Attacked], Auc | None]]] = {
    "tokens of a site": _tokens,
    "tokens of one record": _one_record,
    "membership by gradients": _members,
    "membership by loss": _by_loss,
    "membership by shadow models": _by_shadows,
}
