"""A language model that lost a layer, trained back on public text under several schedules and on several texts.

    fedglm simulate text --no-dp --seed 7 --out RUN
    python benchmarks/recovery.py RUN/model                    # schedules, on docstrings
    python benchmarks/recovery.py RUN/model --texts            # the control and the default on several texts

The model is that of `text` (pydoc, 0.5 M, seed 7). Its held-out documents, which no training saw, give the loss; a
fifth of the public text chooses the best weights. Every student has the same start, batches and steps; `control` has no
teacher. "rise" is of the perplexity, against the whole model's.
"""

import argparse
import time
from dataclasses import replace

import torch
from student import variants
from torch.nn import functional

from fedglm.autoglm.data.examples import Examples, concatenate
from fedglm.autoglm.federation import load_federation
from fedglm.autoglm.light.distillation.settings import DistillationSettings, Stage
from fedglm.autoglm.light.distillation.student import copy_layers
from fedglm.autoglm.light.distillation.teacher import Teacher
from fedglm.autoglm.light.distillation.training import train_student
from fedglm.autoglm.light.public_text import PublicText, load_public_text
from fedglm.autoglm.models.release import load_release
from fedglm.autoglm.settings import DataSettings
from fedglm.autoglm.tasks.language_modeling import LanguageModeling
from fedglm.autoglm.tasks.task import Batch, Task

MATCHES = (0.1, 1.0)
"""Weights of the hidden states' relative squared error against the loss."""


class HiddenStateMatching(LanguageModeling):
    """The task with the error of the last hidden states added to each sequence's loss (TinyBERT, arXiv:1909.10351)."""

    def watch(self, student: torch.nn.Module, teacher: torch.nn.Module, weight: float) -> None:
        """Add the error of this student against this teacher from now on."""
        seen: dict[str, torch.Tensor] = {}

        def keep(name: str) -> object:
            return lambda _module, _inputs, output: seen.__setitem__(name, output)

        student.model.norm.register_forward_hook(keep("student"))
        teacher.model.norm.register_forward_hook(keep("teacher"))
        object.__setattr__(self, "_of", (seen, teacher, weight))

    def losses(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return cross-entropy plus the weighted error; the cross-entropy alone where nothing trains."""
        own = super().losses(logits, batch)
        if not torch.is_grad_enabled():
            return own
        seen, teacher, weight = self._of
        with torch.no_grad():
            teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        mask = batch["attention_mask"][..., None]
        error = functional.mse_loss(seen["student"] * mask, seen["teacher"] * mask, reduction="none").sum((1, 2))
        return own + weight * error / (seen["teacher"] * mask).square().sum((1, 2))


def held_out_text(settings: DataSettings, seed: int) -> Examples:
    """Held-out documents of all sites of the run."""
    return concatenate([site.held_out for site in load_federation(settings, nodes=4, seed=seed).sites])


def main() -> None:
    """Print the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--layers", type=int, nargs="*", default=[0, 2], help="layers that are kept")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--sequences", type=int, default=2000)
    parser.add_argument("--run-seed", type=int, default=7, help="seed of the run, which chose the held-out documents")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--only", nargs="*", default=[], help="words, one of which a variant's name holds")
    parser.add_argument("--texts", action="store_true", help="compare texts instead of schedules")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model, task = load_release(chosen.model)
    model.config.use_cache = False
    settings = DataSettings(source="pydoc", length=task.length)
    test = held_out_text(settings, chosen.run_seed)
    best = task.evaluate(model, test)
    print(f"whole model: loss {best.loss:.4f} on {best.count} held-out tokens", flush=True)
    cut = task.evaluate(copy_layers(model, chosen.layers), test)
    print(f"layers {chosen.layers} untrained: rise {cut.metric / best.metric - 1:+.1%}", flush=True)

    def train(name: str, stages: tuple[Stage, ...], text: PublicText, teacher: object, own: Task, seed: int) -> None:
        student = copy_layers(model, chosen.layers)
        if isinstance(own, HiddenStateMatching):
            own.watch(student, model, float(name.rsplit(" ", 1)[1]))
        started = time.process_time()
        trained = train_student(
            student,
            teacher,
            text.train,
            DistillationSettings(stages=stages, evaluate_every=40),
            task=own,
            held_out=text.held_out.select(range(min(128, len(text.held_out)))),
            seed=seed,
        )
        found = task.evaluate(student, test)
        print(
            f"{name:44} seed {seed}  rise {found.metric / best.metric - 1:+6.1%}  loss {found.loss:.4f}  "
            f"step {trained.kept_step}  {time.process_time() - started:.0f} CPU-s",
            flush=True,
        )

    def load(source: str) -> PublicText:
        return load_public_text(source, settings, task, model, seed=0, max_sequences=chosen.sequences)

    schedules = variants(chosen.steps, chosen.rate)
    seeds = list(map(int, chosen.seeds.split(",")))
    if chosen.texts:
        sites = load_federation(settings, nodes=4, seed=chosen.run_seed).sites
        own = concatenate([site.train for site in sites])
        private = replace(load("auto"), train=own.select(torch.randperm(len(own))[: chosen.sequences]))
        for source, text in (("docstrings", load("auto")), ("model-made", load("model")), ("the sites' own", private)):
            for name in ("control", "T 2, alpha 0.9"):
                for seed in seeds:
                    train(f"{source}: {name}", schedules[name], text, Teacher(model, text.train), task, seed)
        return
    text = load("auto")
    teacher = Teacher(model, text.train)
    matching = HiddenStateMatching(**{name: getattr(task, name) for name in (
        "length", "vocab_size", "pad_id", "bos_id", "eos_id", "tokenizer")})  # fmt: skip
    every = [(name, stages, task) for name, stages in schedules.items()]
    every += [(f"T 2, alpha 0.9, hidden states {weight}", schedules["T 2, alpha 0.9"], matching) for weight in MATCHES]
    for name, stages, of in every:
        if not chosen.only or any(word in name for word in chosen.only):
            for seed in seeds:
                train(name, stages, text, teacher, of, seed)


if __name__ == "__main__":
    main()
