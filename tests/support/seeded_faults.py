"""Faults that a private node could have; each function puts one in, by pytest's monkeypatch."""

from dataclasses import replace

import numpy as np
import torch

from fedglm.autoglm.models.parameters import load_vector
from fedglm.autoglm.tasks.task import Task
from fedglm.client import local_trainer, node, private_training
from fedglm.compression.codec import decode
from fedglm.privacy.custody import store
from fedglm.privacy.dp import clipping, dp_sgd
from fedglm.privacy.dp.dp_sgd import UnitSampler, compute_noised_mean, make_micro_batches
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.ledger.ledger import Ledger


def no_clip(patch):
    def unclipped(_self, squares):
        return torch.ones(len(squares)), torch.ones(len(squares), dtype=torch.bool)

    patch.setattr(clipping.Clipper, "_compute_factors", unclipped)


def nan_let_through(patch):
    right = clipping.Clipper._compute_factors

    def careless(self, squares):
        factors, _ = right(self, squares)
        return torch.nan_to_num(factors), torch.ones(len(squares), dtype=torch.bool)

    patch.setattr(clipping.Clipper, "_compute_factors", careless)


def half_noise(patch):
    def quiet(total, mechanism, *others):
        return compute_noised_mean(total, replace(mechanism, noise_multiplier=mechanism.noise_multiplier / 2), *others)

    patch.setattr(private_training, "compute_noised_mean", quiet)


def _noise_changed(patch, change):
    """What `change` makes of the noise of a step, (size,)."""
    right = GaussianNoise._fill_normal
    patch.setattr(GaussianNoise, "_fill_normal", lambda self, std, out: change(right(self, std, out)))


def biases_norms_and_head_without_noise(patch):
    """704 of 107,200 coordinates of the model of `hospital`: all of its biases and norms, and the classifier's head."""
    names = []
    listed = private_training.federated_parameters

    def noted(model):
        names[:] = listed(model)
        return names

    def bare(values):
        start = 0
        for name, parameter in names:
            stop = start + parameter.numel()
            if name.endswith("bias") or "norm" in name or name.startswith("score"):
                values[start:stop] = 0
            start = stop
        return values

    patch.setattr(private_training, "federated_parameters", noted)
    _noise_changed(patch, bare)


def noise_shared_by_neighbours(patch):
    _noise_changed(patch, lambda values: np.repeat(values[: -(-len(values) // 8)], 8)[: len(values)])


def noise_in_repeated_blocks(patch):
    _noise_changed(patch, lambda values: np.resize(values[:2048], len(values)))


def noise_from_a_seed(patch):
    patch.setattr(
        GaussianNoise, "_fill_normal", lambda _, std, out: (std * np.random.standard_normal(len(out))).astype(out.dtype)
    )


def noise_every_micro_batch(patch):
    right = clipping.Clipper.add

    def noisy(self, losses, owners):
        right(self, losses, owners)
        self.total += torch.from_numpy(GaussianNoise().normal(1e5 * 0.2, len(self.total)))

    patch.setattr(clipping.Clipper, "add", noisy)


def no_noise_on_an_empty_sample(patch):
    def sparing(total, *others):
        return compute_noised_mean(total, *others) if total.any() else total

    patch.setattr(private_training, "compute_noised_mean", sparing)


def batch_mean_loss(patch):
    right = Task.sequence_losses
    patch.setattr(Task, "sequence_losses", lambda *arguments: right(*arguments) / len(arguments[2]["labels"]))


def shuffled_batches(patch):
    def shuffled(self):
        return [self._records[unit] for unit in self._noise.choice(len(self), round(0.4 * len(self)))]

    patch.setattr(UnitSampler, "draw", shuffled)


def clip_each_record(patch):
    def apart(drawn, most):
        for indices, owners in make_micro_batches(drawn, most):
            yield indices, torch.arange(len(owners))

    patch.setattr(private_training, "make_micro_batches", apart)


def all_records_of_a_unit(patch):
    patch.setattr(dp_sgd, "choose_records", lambda _noise, records, _most: records)


def divided_by_the_sample(patch):
    drawn, right = [], UnitSampler.draw

    def draw(self):
        drawn.append(right(self))
        return drawn[-1]

    def private(total, mechanism, noise, _declared):
        count = max(1, len(drawn[-1]))
        return (total + torch.from_numpy(noise.normal(mechanism.noise_std, len(total)))) / count

    patch.setattr(UnitSampler, "draw", draw)
    patch.setattr(private_training, "compute_noised_mean", private)


# --- of the node around the training


def ledger_reset(patch):
    class Forgetful(Ledger):
        def __init__(self, path):
            path.unlink()
            Ledger.create(path)
            super().__init__(path)

    Forgetful.create = Ledger.create
    patch.setattr(store, "Ledger", Forgetful)


def residual_before_noise(patch):
    """The clean update is compensated and its largest values chosen; as much noise as is right follows on those."""
    train, code, late = local_trainer.train_privately, node.code_update, []

    def clean(*arguments, learning_rate, declared_units):
        *others, mechanism = arguments
        noise = learning_rate * mechanism.noise_std * mechanism.steps**0.5
        late.append(noise / (mechanism.sampling_rate * declared_units))
        quiet = replace(mechanism, noise_multiplier=1e-4 * mechanism.noise_multiplier)
        return train(*others, quiet, learning_rate=learning_rate, declared_units=declared_units)

    def coded(state, delta, base, server_round, settings, layout, **options):
        pending = code(state, delta, base, server_round, settings, layout, **options)
        sent = decode(pending.blob, size=layout.size).to_dense()
        noised = np.where(sent != 0, sent + GaussianNoise().normal(late[-1], layout.size), np.float32(0))
        return replace(pending, blob=settings.make_codec(layout).encode(noised))

    patch.setattr(local_trainer, "train_privately", clean)
    patch.setattr(node, "code_update", coded)


def paced_by_held_out_data(patch):
    """An update is the smaller, the worse it does on the node's held-out records."""
    right = local_trainer.LocalTrainer.train

    def paced(self, request, base, authorization, precision):
        delta = right(self, request, base, authorization, precision)
        load_vector(self._model.module, base + delta)
        return delta / np.float32(1 + self._model.task.evaluate(self._model.module, self._held_out).loss)

    patch.setattr(local_trainer.LocalTrainer, "train", paced)
