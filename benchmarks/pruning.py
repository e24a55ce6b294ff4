"""Structured pruning of a language model's FFN: scores compared, then recovery against an equally trained control.

    fedglm simulate text --no-dp --seed 7 --out RUN
    python benchmarks/pruning.py scores RUN                      # perplexity right behind the cut, no training
    python benchmarks/pruning.py recovery RUN --steps 600        # distilled from the dense model
    python benchmarks/pruning.py recovery RUN --only "mask, zero" "group lasso"

The text is the run's own (`pydoc`, the Python reference, which is public): what its nodes trained on calibrates and
recovers, and of the documents that no node trained on a fifth chooses the best weights of each training; the figures
are of the other four fifths. The control is the dense model, trained as long on the same batches without a teacher;
with `--teacher control` it is the teacher, which has then seen the text that the students see.
"""

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from transformers import PreTrainedModel

from fedglm.autoglm.data.examples import Examples, concatenate
from fedglm.autoglm.federation import load_federation
from fedglm.autoglm.light.distillation.settings import DistillationSettings, Stage
from fedglm.autoglm.light.distillation.training import TrainingHook, train_student
from fedglm.autoglm.light.pruning.masks import MaskSettings, attach_masks, remove_masks
from fedglm.autoglm.light.pruning.proximal import ProximalHook, ProximalSettings
from fedglm.autoglm.light.pruning.prune import prune
from fedglm.autoglm.light.pruning.settings import Budget, PruningSettings
from fedglm.autoglm.light.pruning.shape import ModelShape
from fedglm.autoglm.light.pruning.surgery import apply_plan, read_shape
from fedglm.autoglm.models.release import load_release
from fedglm.autoglm.tasks.task import Task
from fedglm.scenarios.scenario import Scenario

SHARES = (0.3, 0.5, 0.7)
METHODS = ("random", "l1", "energy", "taylor", "fisher", "reconstruction")


@dataclass(frozen=True)
class Data:
    """The model, its task and its sequences."""

    model: PreTrainedModel
    task: Task
    train: Examples
    choose: Examples
    test: Examples

    def perplexity(self, model: torch.nn.Module) -> float:
        """Perplexity on the unseen documents that choose nothing."""
        return self.task.evaluate(model, self.test).metric


def load(run: Path) -> Data:
    """Read a run folder's model and data."""
    scenario = Scenario.from_toml((run / "scenario.toml").read_text())
    federation = scenario.federation
    data = load_federation(scenario.data, nodes=federation.nodes, seed=federation.seed, model=scenario.model)
    held_out = concatenate([site.held_out for site in data.sites])
    units = np.unique(held_out.units)
    choosing = np.isin(held_out.units, np.random.default_rng(0).permutation(units)[: len(units) // 5])
    model, task = load_release(run / "model")
    parts = (held_out.select(np.flatnonzero(part)) for part in (choosing, ~choosing))
    return Data(model, task, concatenate([site.train for site in data.sites]), *parts)


def ffn_budget(shape: ModelShape, share: float) -> Budget:
    """A budget that a model meets by losing that share of its FFN channels."""
    channels = sum(layer.intermediate_size for layer in shape.layers)
    return Budget(parameters=shape.parameters() - round(share * channels) * shape.channel_parameters())


def cut_settings(shape: ModelShape, share: float, **fields: object) -> PruningSettings:
    """Settings that cut FFN channels alone."""
    return PruningSettings.model_validate({"budget": ffn_budget(shape, share), "units": ("channels",)} | fields)


def scores_table(data: Data, seeds: int) -> None:
    """Print perplexity right behind the cut: by method, share, with and without refitting, alike and per layer."""
    shape, dense = read_shape(data.model), data.perplexity(data.model)
    print(f"dense: {shape.parameters()} parameters, perplexity {dense:.4f}, {int(data.test.lengths.sum())} tokens\n")
    print("| score | " + " | ".join(f"{share:.0%}, {how}" for share in SHARES for how in HOW) + " |")
    print("|---" * (1 + len(SHARES) * len(HOW)) + "|")
    for method in METHODS:
        cells = []
        for share in SHARES:
            for fields in HOW.values():
                rises = [
                    data.perplexity(
                        prune(
                            data.model,
                            data.task,
                            data.train,
                            cut_settings(shape, share, method=method, **fields),
                            seed=seed,
                        ).model
                    )
                    / dense
                    - 1
                    for seed in range(seeds if method == "random" else 1)
                ]
                cells.append(f"{np.mean(rises):+.1%}")
        print(f"| {method} | " + " | ".join(cells) + " |", flush=True)


HOW: dict[str, dict[str, bool]] = {
    "plain": {"refit": False},
    "refitted": {"refit": True},
    "refitted, per layer": {"refit": True, "per_layer": True},
}


@dataclass(frozen=True)
class Recovery:
    """Trainings of one length.

    Attributes:
        data: The data.
        steps: Steps of each training, all together.
        stage: What its stages share.
        seed: Seed of the batches.
        teacher: The model that the students are distilled from.
    """

    data: Data
    steps: int
    stage: dict[str, object]
    seed: int
    teacher: PreTrainedModel

    def train(
        self,
        student: torch.nn.Module,
        *,
        share: float = 1.0,
        hooks: tuple[TrainingHook, ...] = (),
        keep: str = "best",
        **fields: object,
    ) -> None:
        """Train a model in place for a share of the steps, distilled from the teacher unless alpha is 0."""
        steps = max(1, round(share * self.steps))
        stage = Stage.model_validate({**self.stage, "steps": steps, **fields})
        settings = DistillationSettings.model_validate({"stages": (stage,), "evaluate_every": 100, "keep": keep})
        teacher = copy.deepcopy(self.teacher) if stage.needs_teacher else None
        train_student(
            student,
            teacher,
            self.data.train,
            settings,
            task=self.data.task,
            held_out=self.data.choose,
            seed=self.seed,
            hooks=hooks,
        )

    def control(self) -> PreTrainedModel:
        """Train the dense model as long."""
        model = copy.deepcopy(self.data.model)
        self.train(model, alpha=0.0)
        return model

    def one_shot(self, share: float, train: dict[str, object] | None = None, **fields: object) -> PreTrainedModel:
        """Cut once, then train."""
        settings = cut_settings(read_shape(self.data.model), share, **fields)
        small = prune(self.data.model, self.data.task, self.data.train, settings, seed=self.seed).model
        self.train(small, **(train or {}))
        return small

    def iterative(self, share: float, cuts: int = 4, **fields: object) -> PreTrainedModel:
        """Cut several times in the first half of the steps, with constant rate between, then train for the rest."""
        settings = cut_settings(read_shape(self.data.model), share, steps=cuts, **fields)

        def between(model: PreTrainedModel, step: int) -> None:
            if step < cuts - 1:
                self.train(model, share=0.5 / (cuts - 1), keep="last", decay="constant")
            else:
                self.train(model, share=0.5)

        return prune(self.data.model, self.data.task, self.data.train, settings, seed=self.seed, train=between).model

    def masked(self, share: float, masked: str) -> PreTrainedModel:
        """Mask channels that may come back for half of the steps, then cut and train for the rest."""
        model, last = copy.deepcopy(self.data.model), round(0.4 * self.steps)
        settings = MaskSettings.model_validate(
            {"density": 1 - share, "last_step": last, "interval": max(1, last // 12), "masked": masked}
        )
        hook = attach_masks(model, settings)
        self.train(model, share=0.5, keep="last", decay="constant", hooks=(hook,))
        small = apply_plan(model, remove_masks(model))
        self.train(small, share=0.5)
        return small

    def proximal(self, share: float, penalty: str, shrink: float) -> PreTrainedModel:
        """Shrink towards sparsity for half of the steps, then cut to the budget and train for the rest."""
        model = copy.deepcopy(self.data.model)
        hook = ProximalHook(model, ProximalSettings.model_validate({"penalty": penalty, "shrink": shrink}))
        self.train(model, share=0.5, keep="last", decay="constant", hooks=(hook,))
        settings = cut_settings(read_shape(model), share)
        small = prune(model, self.data.task, self.data.train, settings, seed=self.seed).model
        self.train(small, share=0.5)
        return small

    def variants(self, share: float) -> Iterator[tuple[str, Callable[[], PreTrainedModel]]]:
        """The variants by name."""
        yield "reconstruction, refitted", lambda: self.one_shot(share)
        yield "energy, refitted", lambda: self.one_shot(share, method="energy")
        yield "energy, plain", lambda: self.one_shot(share, method="energy", refit=False)
        yield "taylor, plain", lambda: self.one_shot(share, method="taylor", refit=False)
        yield "random, plain", lambda: self.one_shot(share, method="random", refit=False)
        yield "l1, plain", lambda: self.one_shot(share, method="l1", refit=False)
        yield "per layer", lambda: self.one_shot(share, per_layer=True)
        yield "no teacher (alpha 0)", lambda: self.one_shot(share, {"alpha": 0.0})
        yield "iterative, 4 cuts", lambda: self.iterative(share)
        yield "mask, shadow", lambda: self.masked(share, "shadow")
        yield "mask, zero", lambda: self.masked(share, "zero")
        yield "group lasso", lambda: self.proximal(share, "group-lasso", 0.003)
        yield "l1 training", lambda: self.proximal(share, "l1", 0.003)


def recovery_table(recovery: Recovery, shares: list[float], only: list[str], *, from_control: bool) -> None:
    """Print perplexity behind recovery, against the dense model and its control."""
    data, trained = recovery.data, recovery.control()
    dense, control = data.perplexity(data.model), data.perplexity(trained)
    if from_control:
        recovery = replace(recovery, teacher=trained)
    print(
        f"dense {dense:.4f}; control after {recovery.steps} steps {control:.4f} ({control / dense - 1:+.2%})",
        flush=True,
    )
    best = min(dense, control)  # a control that overfits is no excuse
    print("\n| FFN cut | variant | parameters | perplexity | against the better of dense and control | s |")
    print("|---|---|---|---|---|---|")
    for share in shares:
        for name, make in recovery.variants(share):
            if only and name not in only:
                continue
            start = time.monotonic()
            model = make()
            found, size = data.perplexity(model), read_shape(model).parameters()
            seconds = time.monotonic() - start
            print(
                f"| {share:.0%} | {name} | {size} | {found:.4f} | {found / best - 1:+.2%} | {seconds:.0f} |", flush=True
            )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("scores", "recovery"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--alpha", type=float, default=0.9)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--shares", default=",".join(map(str, SHARES)))
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher", choices=("dense", "control"), default="dense")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load(given.run)
    if given.table == "scores":
        scores_table(data, seeds=3)
        return
    stage = {"alpha": given.alpha, "temperature": given.temperature, "learning_rate": given.rate, "warmup_steps": 20}
    recovery = Recovery(data, given.steps, stage, given.seed, data.model)
    shares = [float(share) for share in given.shares.split(",")]
    recovery_table(recovery, shares, given.only, from_control=given.teacher == "control")


if __name__ == "__main__":
    sys.exit(main())
