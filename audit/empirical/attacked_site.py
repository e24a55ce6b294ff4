"""What a server that is honest but curious could read from one site's update.

tokens       which tokens the records hold, by how the embedding's rows move (after Melis et al., arXiv 1805.04049)
members      which records were trained on, by how much of each one's gradient is in an update; by the loss of the
             model with the update; and the former against shadow updates (LiRA)
one record   the tokens of a site that has one record alone and takes one step: inversion in closed form
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
from fedglm.audit.empirical.scores import Auc, auc, likelihood_ratios, mean_auc
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

_CANDIDATES: Final = 200
_SHADOWS: Final = 8
_ALONE: Final = 4
"""Records that each are a site of their own."""


class TooLittle(FedglmError, ValueError):
    """An attack has too little to work with; the message says of what."""


@dataclass(frozen=True)
class AttackSetting:
    """A way to make an update.

    Attributes:
        name: For people.
        mechanism: How noise is added; None for none.
        coded: By the run's codec; else as it is.
    """

    name: str
    mechanism: Mechanism | None
    coded: bool


class _Part(NamedTuple):
    """The part of an update that attacks look at: the embedding; of adapters alone, all.

    Attributes:
        place: In the vector.
        width: Of a row.
        is_embedding: Whether a row is a token's.
        is_output: Whether it is so in the output layer too.
    """

    place: slice
    width: int
    is_embedding: bool
    is_output: bool


class AttackedSite:
    """A site whose updates are attacked: half of its records, or as many as a round looks at, are trained on.

    Args:
        audited: The run.
        site: Of the run.

    Attributes:
        trained: Records that the attacked updates are made of.
        others: As many that they are not made of.

    Raises:
        TooLittle: It has fewer than two records.
    """

    def __init__(self, audited: AuditedRun, site: SiteRecords) -> None:
        self._audited, self._site, self._stage = audited, site, audited.stage
        order = np.random.default_rng([self._seed, 4711]).permutation(len(site.train))
        training = self._stage.scenario.training
        half = min(len(order) // 2, training.local_steps * training.batch_size)  # a round looks at no more
        if not half:
            raise TooLittle("it takes two records, one to train on and one that is not")
        self._kept: dict[Mechanism | None, list[Vector]] = {}
        self.trained, self.others = site.train.select(order[:half]), site.train.select(order[half : 2 * half])

    def updated(self, variant: AttackSetting, records: Examples, number: int, *, steps: int | None = None) -> Vector:
        """The update that a node would send for these records, decoded."""
        return self._sent(variant, self._trained_on(variant.mechanism, records, number, steps))

    def tokens(self, records: Examples, update: Vector) -> Auc:
        """Which tokens some records hold, by the rows of an update's embedding.

        Rows of tokens that no record holds do not move. Where they are the output layer's too they all do, much as
        most rows do: how far a row is from the median row tells its token.
        """
        if not self._part.is_embedding:
            raise TooLittle("no embedding is trained")
        task = self._stage.data.task
        rows = self._moved(update).reshape(-1, self._part.width)
        known = np.setdiff1d(np.arange(len(rows)), (task.pad_id, task.bos_id, task.eos_id))
        used = records.input_ids[torch.arange(records.input_ids.shape[1]) < records.lengths[:, None]]
        held = np.isin(known, used.numpy())
        if min(held.sum(), (~held).sum()) < 2:
            raise TooLittle("it takes two tokens that the records hold and two that they do not")
        rows = rows[known].astype(np.float64)
        unheld = np.median(rows, axis=0) if self._part.is_output else np.zeros(self._part.width)
        return auc(np.linalg.norm(rows - unheld, axis=1), held)

    def membership(self, update: Vector) -> Auc:
        """Which candidates were trained on, by how much of each one's gradient is in the update."""
        _, truth = self._candidates(self._fitting)
        return auc(self._shares_of(update), truth)

    def membership_by_loss(self, update: Vector) -> Auc:
        """The same by their losses under the starting weights moved by the update."""
        records, truth = self._candidates(_CANDIDATES // 2)
        model = self._stage.model.module
        load_vector(model, self._audited.base + update)
        losses, _ = self._stage.data.task.measure(model, records)
        return auc(-losses.numpy().astype(np.float64), truth)

    def membership_by_shadows(self, variant: AttackSetting, update: Vector) -> Auc:
        """As `membership`, against what the same figures are for updates whose records are known.

        A shadow is trained on a random half of these records, as the attacked update is: each candidate is in half of
        them.
        """
        records, truth = self._candidates(self._fitting)
        known = np.stack([self._shares_of(self._sent(variant, delta)) for delta in self._shadows(variant.mechanism)])
        asked = np.concatenate([np.arange(len(records) // 2), len(self.trained) + np.arange(len(records) // 2)])
        return auc(likelihood_ratios(self._shares_of(update), known, self._inside[:, asked]), truth)

    def _trained_on(self, mechanism: Mechanism | None, records: Examples, number: int, steps: int | None) -> Vector:
        stage, scenario, model = self._stage, self._stage.scenario, self._stage.model
        training, rate = scenario.training, scenario.training.learning_rate
        precision = choose_precision(
            training.precision, model.layout.size, torch_device(training.device), private=mechanism is not None
        )
        if mechanism is None:
            return train_locally(
                model.module, model.task.sequence_losses, records, self._audited.base, training, precision,
                learning_rate=rate, seed=round_seed(self._seed, self._site.name, number), steps=steps,
            ).delta  # fmt: skip
        own = mechanism if steps is None else replace(mechanism, steps=steps)
        return train_privately(
            model.module, stage.data.task, records, self._audited.base, training, precision, own,
            learning_rate=rate, declared_units=declared_units(self._site),
        ).delta  # fmt: skip

    def _sent(self, variant: AttackSetting, delta: Vector) -> Vector:
        if not variant.coded:
            return delta
        layout = self._stage.model.layout
        codec = self._stage.scenario.update.make_codec(layout)
        return decode(codec.encode(delta), size=layout.size).to_dense()

    def _shadows(self, mechanism: Mechanism | None) -> Iterable[Vector]:
        """Trained on the records that `_inside` tells; they serve for all codings, and are kept where they fit."""
        pool = concatenate([self.trained, self.others])
        made = (
            self._trained_on(mechanism, pool.select(np.flatnonzero(row)), number, None)
            for number, row in enumerate(self._inside, 1)
        )
        if max_gradients(len(self._audited.base)) < _SHADOWS:
            return made
        if mechanism not in self._kept:
            self._kept = {mechanism: list(made)}
        return self._kept[mechanism]

    @cached_property
    def _inside(self) -> npt.NDArray[np.bool_]:
        """(shadows, records) which of `trained` and then `others` each shadow is trained on: each in half of them."""
        dice = np.random.default_rng([self._seed, 815])
        each = len(self.trained)
        half = np.stack([dice.permutation(2 * each) < each for _ in range(_SHADOWS // 2)])
        return np.concatenate([half, ~half])

    @property
    def _seed(self) -> int:
        return self._audited.stage.scenario.federation.seed

    @property
    def _fitting(self) -> int:
        """Candidates of each kind whose gradients are looked at."""
        values = len(self._audited.base[self._part.place])
        most = max_gradients(values) // 2
        if most < 2:
            raise DoesNotFit(f"2 GiB hold {2 * most} gradients of {values:,} parameters")
        return min(_CANDIDATES // 2, most)

    def _candidates(self, each: int) -> tuple[Examples, npt.NDArray[np.bool_]]:
        """Records to be told apart, and which of them were trained on."""
        count = min(each, len(self.trained))
        if count < 2:
            raise TooLittle("it takes two records that were trained on and two that were not")
        both = concatenate([self.trained.select(range(count)), self.others.select(range(count))])
        return both, np.arange(2 * count) < count

    @cached_property
    def _shares(self) -> GradientShares:
        """Of the candidates, by their gradients at the starting weights: no variant changes them."""
        records, _ = self._candidates(self._fitting)
        return GradientShares(self._audited.bench(records).gradients(records, self._part.place), self._part.width)

    def _shares_of(self, update: Vector) -> npt.NDArray[np.float64]:
        """(n,) how much of each candidate's gradient is in an update."""
        return self._shares.of(self._moved(update))

    def _moved(self, update: Vector) -> Vector:
        """The part of an update that attacks look at, as it would be without weight decay.

        Decay moves every row by one share of itself; who knows the starting weights takes that away.
        """
        width = self._part.width
        rows, start = (vector[self._part.place].reshape(-1, width) for vector in (update, self._audited.base))
        shares = (rows * start).sum(axis=1) / np.maximum((start * start).sum(axis=1), 1e-30)
        moved: Vector = (rows - np.median(shares) * start).reshape(-1)
        return moved

    @cached_property
    def _part(self) -> _Part:
        layout, weights = self._stage.model.layout, self._stage.model.module.state_dict()
        places = Counter(weight.data_ptr() for weight in weights.values())
        for (name, place), shape in zip(layout.slices().items(), layout.shapes, strict=True):
            if name.endswith("embed_tokens.weight"):
                return _Part(place, shape[1], is_embedding=True, is_output=places[weights[name].data_ptr()] > 1)
        return _Part(slice(0, layout.size), layout.size, is_embedding=False, is_output=False)


def _alone(site: AttackedSite, variant: AttackSetting, _: Vector) -> Auc:
    areas, why = [], None
    for number in range(min(_ALONE, len(site.trained))):
        record = site.trained.select([number])
        try:
            areas.append(site.tokens(record, site.updated(variant, record, number, steps=1)))
        except TooLittle as exc:
            why = exc
    if why is not None and not areas:
        raise why
    return mean_auc(areas)


ATTACKS: Final[dict[str, Callable[[AttackedSite, AttackSetting, Vector], Auc]]] = {
    "tokens of a site": lambda site, _, update: site.tokens(site.trained, update),
    "tokens of one record": _alone,
    "membership by gradients": lambda site, _, update: site.membership(update),
    "membership by loss": lambda site, _, update: site.membership_by_loss(update),
    "membership by shadow models": lambda site, variant, update: site.membership_by_shadows(variant, update),
}
"""Each by its name: of a site, by a variant of its update."""
