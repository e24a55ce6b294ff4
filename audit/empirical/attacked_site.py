"""Attacks of an honest but curious server on one site's update.

tokens       which tokens the records contain, by how the embedding's rows move (after Melis et al., arXiv 1805.04049)
members      which records were trained on: by how much of each one's gradient is in an update; by the loss of the
             model with the update; and by the former compared with shadow updates (LiRA)
one record   the tokens of a site that has a single record and takes one step: inversion in closed form
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fedglm.audit.empirical.audited_run import AuditedRun
from fedglm.audit.empirical.gradient_shares import GradientShares
from fedglm.audit.empirical.probe import DoesNotFit, max_gradients
from fedglm.audit.empirical.scores import Auc, average_auc, compute_auc, compute_likelihood_ratios
from fedglm.autoglm.data.examples import Examples, concatenate
from fedglm.autoglm.federation import SiteRecords
from fedglm.autoglm.models.parameters import load_vector
from fedglm.autoglm.training.local import round_seed, train_locally
from fedglm.autoglm.training.precision import choose_precision, torch_device
from fedglm.client.private_training import train_privately
from fedglm.compression.codec import decode
from fedglm.core.errors import FedglmError
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.scenarios.noise_plan import declared_units

Vector = npt.NDArray[np.float32]

_MAX_CANDIDATES: Final = 200
_SHADOW_UPDATES: Final = 8
_MAX_SINGLE_RECORDS: Final = 4
"""Records that each serve as a site of their own."""


class NotAttackable(FedglmError, ValueError):
    """An attack has too little to work with; the message says what it lacks."""


@dataclass(frozen=True)
class AttackSetting:
    """A way to make an update.

    Attributes:
        name: Name for people.
        mechanism: Mechanism that adds noise; None for no noise.
        coded: Whether the update is coded by the run's codec.
    """

    name: str
    mechanism: Mechanism | None
    coded: bool


class _AttackedPart(NamedTuple):
    """The part of an update that attacks look at: the embedding, or for adapters alone the whole vector.

    Attributes:
        place: Place in the vector.
        width: Values per row.
        is_embedding: Whether each row belongs to a token.
        is_output: Whether the rows are those of the output layer, too.
    """

    place: slice
    width: int
    is_embedding: bool
    is_output: bool


class AttackedSite:
    """A site whose updates are attacked; half of its records, at most as many as a round uses, are trained on.

    Args:
        audited: The run.
        site: A site of the run.

    Attributes:
        trained: Records that the attacked updates are made from.
        others: As many records that they are not made from.

    Raises:
        NotAttackable: The site has fewer than two records.
    """

    def __init__(self, audited: AuditedRun, site: SiteRecords) -> None:
        self._audited, self._site, self._built = audited, site, audited.built
        order = np.random.default_rng([self._seed, 4711]).permutation(len(site.train))
        training = self._built.scenario.training
        half = min(len(order) // 2, training.local_steps * training.batch_size)  # a round uses no more
        if not half:
            raise NotAttackable("it takes two records, one to train on and one that is not")
        self._cached_shadows: dict[Mechanism | None, list[Vector]] = {}
        self.trained, self.others = site.train.select(order[:half]), site.train.select(order[half : 2 * half])

    def make_update(
        self, setting: AttackSetting, records: Examples, number: int, *, steps: int | None = None
    ) -> Vector:
        """Make the update that a node would send for these records, decoded.

        Args:
            setting: How the update is made.
            records: Records to train on.
            number: Number of the update, from which the seed of its data order is derived.
            steps: Local steps; as in the run without it.

        Returns:
            (d,) float32.
        """
        return self._encode_and_decode(setting, self._train(setting.mechanism, records, number, steps))

    def attack_tokens(self, records: Examples, update: Vector) -> Auc:
        """Tell which tokens some records contain, by the rows of an update's embedding.

        Rows of tokens that no record contains do not move. If the rows are the output layer's too, they all move, most
        of them alike: then the distance of a row from the median row tells its token.

        Args:
            records: Records that the update was made from.
            update: (d,) float32.

        Raises:
            NotAttackable: No embedding is trained, or too few tokens can be told apart.
        """
        if not self._attacked_part.is_embedding:
            raise NotAttackable("no embedding is trained")
        task = self._built.data.task
        rows = self._extract_part(update).reshape(-1, self._attacked_part.width)
        ordinary = np.setdiff1d(np.arange(len(rows)), (task.pad_id, task.bos_id, task.eos_id))
        used = records.input_ids[torch.arange(records.input_ids.shape[1]) < records.lengths[:, None]]
        is_present = np.isin(ordinary, used.numpy())
        if min(is_present.sum(), (~is_present).sum()) < 2:
            raise NotAttackable("it takes two tokens that the records hold and two that they do not")
        rows = rows[ordinary].astype(np.float64)
        typical = np.median(rows, axis=0) if self._attacked_part.is_output else np.zeros(self._attacked_part.width)
        return compute_auc(np.linalg.norm(rows - typical, axis=1), is_present)

    def attack_membership(self, update: Vector) -> Auc:
        """Tell which candidates were trained on, by how much of each one's gradient is in the update."""
        _, truth = self._select_candidates(self._max_candidates)
        return compute_auc(self._compute_shares(update), truth)

    def attack_membership_by_loss(self, update: Vector) -> Auc:
        """Tell which candidates were trained on, by their losses under the starting weights plus the update."""
        records, truth = self._select_candidates(_MAX_CANDIDATES // 2)
        model = self._built.model.module
        load_vector(model, self._audited.base + update)
        losses, _ = self._built.data.task.measure(model, records)
        return compute_auc(-losses.numpy().astype(np.float64), truth)

    def attack_membership_by_shadows(self, setting: AttackSetting, update: Vector) -> Auc:
        """Tell which candidates were trained on, by their gradients' shares calibrated with shadow updates.

        A shadow update is trained on a random half of these records, as the attacked update is: each candidate is in
        half of the shadows.
        """
        records, truth = self._select_candidates(self._max_candidates)
        shadow_scores = np.stack(
            [
                self._compute_shares(self._encode_and_decode(setting, delta))
                for delta in self._train_shadows(setting.mechanism)
            ]
        )
        columns = np.concatenate([np.arange(len(records) // 2), len(self.trained) + np.arange(len(records) // 2)])
        return compute_auc(
            compute_likelihood_ratios(self._compute_shares(update), shadow_scores, self._shadow_members[:, columns]),
            truth,
        )

    def _train(self, mechanism: Mechanism | None, records: Examples, number: int, steps: int | None) -> Vector:
        """Train on some records as a node would, and return the change of the weights, (d,) float32."""
        built, scenario, model = self._built, self._built.scenario, self._built.model
        training, rate = scenario.training, scenario.training.learning_rate
        precision = choose_precision(
            training.precision, model.layout.size, torch_device(training.device), private=mechanism is not None
        )
        if mechanism is None:
            return train_locally(
                model.module, model.task.sequence_losses, records, self._audited.base, training, precision,
                learning_rate=rate, seed=round_seed(self._seed, self._site.name, number), steps=steps,
            ).delta  # fmt: skip
        round_mechanism = mechanism if steps is None else replace(mechanism, steps=steps)
        return train_privately(
            model.module, built.data.task, records, self._audited.base, training, precision, round_mechanism,
            learning_rate=rate, declared_units=declared_units(self._site),
        ).delta  # fmt: skip

    def _encode_and_decode(self, setting: AttackSetting, delta: Vector) -> Vector:
        """Return a change of the weights as the server would decode it, if the setting codes updates."""
        if not setting.coded:
            return delta
        layout = self._built.model.layout
        codec = self._built.scenario.update.make_codec(layout)
        return decode(codec.encode(delta), size=layout.size).to_dense()

    def _train_shadows(self, mechanism: Mechanism | None) -> Iterable[Vector]:
        """Train a shadow update for each row of `_shadow_members`.

        They serve for all codings, and are cached if they fit into memory.
        """
        pool = concatenate([self.trained, self.others])
        shadows = (
            self._train(mechanism, pool.select(np.flatnonzero(row)), number, None)
            for number, row in enumerate(self._shadow_members, 1)
        )
        if max_gradients(len(self._audited.base)) < _SHADOW_UPDATES:
            return shadows
        if mechanism not in self._cached_shadows:
            self._cached_shadows = {mechanism: list(shadows)}
        return self._cached_shadows[mechanism]

    @cached_property
    def _shadow_members(self) -> npt.NDArray[np.bool_]:
        """Which of `trained` and then `others` each shadow is trained on, (shadows, records) bool.

        Each record is in half of the shadows.
        """
        dice = np.random.default_rng([self._seed, 815])
        each = len(self.trained)
        half = np.stack([dice.permutation(2 * each) < each for _ in range(_SHADOW_UPDATES // 2)])
        return np.concatenate([half, ~half])

    @property
    def _seed(self) -> int:
        return self._audited.built.scenario.federation.seed

    @property
    def _max_candidates(self) -> int:
        """Number of candidates of each kind whose gradients fit into memory."""
        values = len(self._audited.base[self._attacked_part.place])
        count = max_gradients(values) // 2
        if count < 2:
            raise DoesNotFit(f"2 GiB hold {2 * count} gradients of {values:,} parameters")
        return min(_MAX_CANDIDATES // 2, count)

    def _select_candidates(self, each: int) -> tuple[Examples, npt.NDArray[np.bool_]]:
        """Return records to be told apart, and (n,) bool, which of them were trained on."""
        count = min(each, len(self.trained))
        if count < 2:
            raise NotAttackable("it takes two records that were trained on and two that were not")
        both = concatenate([self.trained.select(range(count)), self.others.select(range(count))])
        return both, np.arange(2 * count) < count

    @cached_property
    def _gradient_shares(self) -> GradientShares:
        """Shares of the candidates' gradients at the starting weights, which no setting changes."""
        records, _ = self._select_candidates(self._max_candidates)
        return GradientShares(
            self._audited.make_probe(records).compute_gradients(records, self._attacked_part.place),
            self._attacked_part.width,
        )

    def _compute_shares(self, update: Vector) -> npt.NDArray[np.float64]:
        """Return (n,) float64, how much of each candidate's gradient is in an update."""
        return self._gradient_shares.compute(self._extract_part(update))

    def _extract_part(self, update: Vector) -> Vector:
        """Return the part of an update that attacks look at, as it would be without weight decay.

        Decay moves every row by the same share of itself; whoever knows the starting weights can remove that.
        """
        width = self._attacked_part.width
        rows, start = (vector[self._attacked_part.place].reshape(-1, width) for vector in (update, self._audited.base))
        shares = (rows * start).sum(axis=1) / np.maximum((start * start).sum(axis=1), 1e-30)
        moved: Vector = (rows - np.median(shares) * start).reshape(-1)
        return moved

    @cached_property
    def _attacked_part(self) -> _AttackedPart:
        """The part of an update that attacks look at."""
        layout, weights = self._built.model.layout, self._built.model.module.state_dict()
        places = Counter(weight.data_ptr() for weight in weights.values())
        for (name, place), shape in zip(layout.slices().items(), layout.shapes, strict=True):
            if name.endswith("embed_tokens.weight"):
                return _AttackedPart(place, shape[1], is_embedding=True, is_output=places[weights[name].data_ptr()] > 1)
        return _AttackedPart(slice(0, layout.size), layout.size, is_embedding=False, is_output=False)


def _attack_single_records(site: AttackedSite, setting: AttackSetting, _: Vector) -> Auc:
    """Attack the tokens of single records, each of which is a site of its own, and average the areas."""
    areas, reason = [], None
    for number in range(min(_MAX_SINGLE_RECORDS, len(site.trained))):
        record = site.trained.select([number])
        try:
            areas.append(site.attack_tokens(record, site.make_update(setting, record, number, steps=1)))
        except NotAttackable as exc:
            reason = exc
    if reason is not None and not areas:
        raise reason
    return average_auc(areas)


ATTACKS: Final[dict[str, Callable[[AttackedSite, AttackSetting, Vector], Auc]]] = {
    "tokens of a site": lambda site, _, update: site.attack_tokens(site.trained, update),
    "tokens of one record": _attack_single_records,
    "membership by gradients": lambda site, _, update: site.attack_membership(update),
    "membership by loss": lambda site, _, update: site.attack_membership_by_loss(update),
    "membership by shadow models": lambda site, setting, update: site.attack_membership_by_shadows(setting, update),
}
"""Attacks by their names; each takes a site, the setting of an update, and the update."""
