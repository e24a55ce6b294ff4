"""Faults that a private training could have; each function puts one in, by pytest's monkeypatch."""

from dataclasses import replace

import numpy as np
import torch

from fedglm.autoglm.tasks import Task
from fedglm.client import private_training
from fedglm.privacy import clipping, dp_sgd
from fedglm.privacy.dp_sgd import UnitSampler, micro_batches, noised_mean
from fedglm.privacy.noise import GaussianNoise


def no_clip(patch):
    def unclipped(_self, squares):
        return torch.ones(len(squares)), torch.ones(len(squares), dtype=torch.bool)

    patch.setattr(clipping.Clipper, "_coefficients", unclipped)


def nan_let_through(patch):
    right = clipping.Clipper._coefficients

    def careless(self, squares):
        factors, _ = right(self, squares)
        return torch.nan_to_num(factors), torch.ones(len(squares), dtype=torch.bool)

    patch.setattr(clipping.Clipper, "_coefficients", careless)


def half_noise(patch):
    def quiet(total, mechanism, *others):
        return noised_mean(total, replace(mechanism, noise_multiplier=mechanism.noise_multiplier / 2), *others)

    patch.setattr(private_training, "noised_mean", quiet)


def noise_from_a_seed(patch):
    patch.setattr(
        GaussianNoise, "fill", lambda _self, std, size: (std * np.random.standard_normal(size)).astype(np.float32)
    )


def noise_every_micro_batch(patch):
    right = clipping.Clipper.add

    def noisy(self, losses, owners):
        right(self, losses, owners)
        self.total += torch.from_numpy(GaussianNoise().fill(1e5 * 0.2, len(self.total)))

    patch.setattr(clipping.Clipper, "add", noisy)


def no_noise_on_an_empty_sample(patch):
    def sparing(total, *others):
        return noised_mean(total, *others) if total.any() else total

    patch.setattr(private_training, "noised_mean", sparing)


def batch_mean_loss(patch):
    right = Task.sequence_losses
    patch.setattr(Task, "sequence_losses", lambda *arguments: right(*arguments) / len(arguments[2]["labels"]))


def shuffled_batches(patch):
    def shuffled(self):
        return [self._records[unit] for unit in self._noise.choice(len(self), round(0.4 * len(self)))]

    patch.setattr(UnitSampler, "draw", shuffled)


def clip_each_record(patch):
    def apart(drawn, most):
        for indices, owners in micro_batches(drawn, most):
            yield indices, torch.arange(len(owners))

    patch.setattr(private_training, "micro_batches", apart)


def all_records_of_a_unit(patch):
    patch.setattr(dp_sgd, "at_most", lambda _noise, records, _most: records)


def divided_by_the_sample(patch):
    drawn, right = [], UnitSampler.draw

    def draw(self):
        drawn.append(right(self))
        return drawn[-1]

    def private(total, mechanism, noise, _declared):
        count = max(1, len(drawn[-1]))
        return (total + torch.from_numpy(noise.fill(mechanism.noise_std, len(total)))) / count

    patch.setattr(UnitSampler, "draw", draw)
    patch.setattr(private_training, "noised_mean", private)
