"""A student with 14 times fewer parameters than its teacher, on MedQuAD's question types, under several schedules.

    python benchmarks/student.py medquad.jsonl.gz --work DIR               # the teacher is trained once, in DIR
    python benchmarks/student.py medquad.jsonl.gz --work DIR --only control article --seeds 1,2,3

Task: the type of a question (16 classes) by the first bytes of its answer, documents apart. Of the held-out documents
some choose the best weights of every training, and the table is of the others. Every student sees the same batches for
the same number of steps; `control` has no teacher. Points are percentage points of accuracy behind the teacher; the
standard error is of one accuracy, by its number of records.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.federation import load_federation
from fedglm.autoglm.light.distillation.schedules import Ramp
from fedglm.autoglm.light.distillation.settings import DistillationSettings, Stage
from fedglm.autoglm.light.distillation.student import copy_layers, make_student
from fedglm.autoglm.light.distillation.teacher import Teacher
from fedglm.autoglm.light.distillation.training import Progress, train_student
from fedglm.autoglm.models.heads import HEADS
from fedglm.autoglm.models.presets import PRESETS, Preset, make_glm_config
from fedglm.autoglm.models.release import load_release, save_release
from fedglm.autoglm.settings import DataSettings
from fedglm.autoglm.tasks.task import Task

SHAPES = {
    # teacher and student: 9.9 and 0.70 M, 2.4 and 0.17 M, 0.82 and 0.058 M
    "10m": (
        PRESETS["glm-10m"],
        Preset(hidden=128, layers=4, heads=4, kv_heads=2, intermediate=312, max_length=2048),
    ),
    "2m": (
        Preset(hidden=192, layers=6, heads=6, kv_heads=2, intermediate=512, max_length=1024),
        Preset(hidden=64, layers=3, heads=2, kv_heads=1, intermediate=192, max_length=1024),
    ),
    "1m": (
        Preset(hidden=128, layers=4, heads=4, kv_heads=2, intermediate=384, max_length=1024),
        Preset(hidden=32, layers=4, heads=2, kv_heads=1, intermediate=96, max_length=1024),
    ),
}


@dataclass(frozen=True)
class Data:
    """The task and its sequences."""

    task: Task
    train: Examples
    choose: Examples
    test: Examples


def variants(steps: int, rate: float) -> dict[str, tuple[Stage, ...]]:
    """Stages by the name of what they try; all have the same number of steps."""

    def stage(part: float = 1.0, **fields: object) -> Stage:
        fixed = {"steps": round(part * steps), "learning_rate": rate, "warmup_steps": round(part * steps / 20)}
        return Stage.model_validate(fixed | fields)

    return {
        "control": (stage(alpha=0.0),),
        "control, wsd": (stage(alpha=0.0, decay="wsd"),),
        "article: T 3, alpha 0.7": (stage(alpha=0.7, temperature=3.0),),
        "T 1, alpha 0.7": (stage(alpha=0.7, temperature=1.0),),
        "T 2, alpha 0.7": (stage(alpha=0.7, temperature=2.0),),
        "T 2, alpha 0.9": (stage(alpha=0.9, temperature=2.0),),
        "T 4, alpha 0.9": (stage(alpha=0.9, temperature=4.0),),
        "T 2, alpha 1": (stage(alpha=1.0, temperature=2.0),),
        "T 4 to 1, alpha 0.9": (stage(alpha=0.9, temperature=Ramp(start=4, end=1)),),
        "T 4 to 1, alpha 0.9 to 0.5": (stage(alpha=Ramp(start=0.9, end=0.5), temperature=Ramp(start=4, end=1)),),
        "stages: T 4 then 1": (
            stage(0.5, alpha=0.9, temperature=4.0),
            stage(0.5, alpha=0.9, temperature=1.0, learning_rate=rate / 2),
        ),
        "T 2, alpha 0.9, wsd": (stage(alpha=0.9, temperature=2.0, decay="wsd"),),
    }


def load(path: str, length: int) -> Data:
    """Read the file; a fifth of the documents is held out, a fifth of those to choose by."""
    fields = {"source": path, "label_field": "label", "unit_field": "unit", "length": length}
    data = load_federation(DataSettings.model_validate(fields), nodes=1, seed=0)
    held_out = data.sites[0].held_out
    units = np.unique(held_out.units)
    choosing = np.isin(held_out.units, np.random.default_rng(0).permutation(units)[: len(units) // 5])
    parts = (held_out.select(np.flatnonzero(part)) for part in (choosing, ~choosing))
    return Data(data.task, data.sites[0].train, *parts)


def report(progress: Progress) -> None:
    """Print an evaluation to stderr."""
    if progress.held_out is not None:
        found = progress.held_out
        print(f"  {progress.step}/{progress.steps} {found.loss:.4f} {found.metric:.4f}", file=sys.stderr, flush=True)


def make_teacher(data: Data, shape: Preset, folder: Path, *, steps: int, rate: float, batch: int) -> torch.nn.Module:
    """Train the teacher, or load the one that was trained."""
    if not folder.exists():
        task = data.task
        config = make_glm_config(
            shape,
            vocab_size=task.vocab_size,
            pad_id=task.pad_id,
            bos_id=task.bos_id,
            eos_id=task.eos_id,
            tied=False,
            labels=task.classes,
        )
        torch.manual_seed(0)
        model = HEADS[task.kind].glm(config)
        model.config.use_cache = False
        stage = Stage(steps=steps, alpha=0.0, learning_rate=rate, warmup_steps=steps // 20)
        settings = DistillationSettings(stages=(stage,), evaluate_every=250, batch_size=batch)
        trained = train_student(
            model, None, data.train, settings, task=task, held_out=data.choose, seed=0, progress=report
        )
        if trained.interrupted:
            sys.exit(130)
        save_release(model, task, folder)
    model, _ = load_release(folder)
    model.config.use_cache = False
    return model


def size(model: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Print the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps the teacher")
    parser.add_argument("--shapes", choices=SHAPES, default="1m")
    parser.add_argument("--length", type=int, default=96, help="bytes of an answer")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--teacher-steps", type=int, default=1000)
    parser.add_argument("--teacher-rate", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--only", nargs="*", default=[], help="words, one of which a variant's name holds")
    parser.add_argument("--layers", type=int, nargs="*", default=[], help="start from these layers of the teacher")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data = load(chosen.data, chosen.length)
    big, small = SHAPES[chosen.shapes]
    folder = chosen.work / f"teacher-{chosen.shapes}-{chosen.length}-{chosen.teacher_steps}"
    started = time.monotonic()
    model = make_teacher(data, big, folder, steps=chosen.teacher_steps, rate=chosen.teacher_rate, batch=chosen.batch)
    best = data.task.evaluate(model, data.test)
    error = math.sqrt(best.metric * (1 - best.metric) / best.count)
    print(
        f"teacher: {size(model):,} parameters, {len(data.train)} rows, {best.metric:.2%} of {best.count} held-out rows "
        f"(standard error {error:.2%}), loss {best.loss:.4f}; {time.monotonic() - started:.0f} s",
        flush=True,
    )
    teacher = Teacher(model, data.train)
    for name, stages in variants(chosen.steps, chosen.rate).items():
        if chosen.only and not any(word in name for word in chosen.only):
            continue
        for seed in map(int, chosen.seeds.split(",")):
            started = time.monotonic()
            student = copy_layers(model, chosen.layers) if chosen.layers else make_student(model, small, seed=seed)
            settings = DistillationSettings(stages=stages, batch_size=chosen.batch, evaluate_every=250)
            trained = train_student(
                student, teacher, data.train, settings, task=data.task, held_out=data.choose, seed=seed
            )
            if trained.interrupted:
                sys.exit(130)
            found = data.task.evaluate(student, data.test)
            row = {
                "variant": name,
                "seed": seed,
                "parameters": size(student),
                "fewer": size(model) / size(student),
                "accuracy": found.metric,
                "points_lost": 100 * (best.metric - found.metric),
                "loss": found.loss,
                "kept_step": trained.kept_step,
                "seconds": time.monotonic() - started,
            }
            if chosen.json:
                print(json.dumps(row), flush=True)
            else:
                print(
                    f"{name:28} seed {seed}  {row['fewer']:5.1f}x fewer  {found.metric:.2%}  {row['points_lost']:5.2f} "
                    f"points lost  loss {found.loss:.4f}  step {trained.kept_step}  {row['seconds']:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
