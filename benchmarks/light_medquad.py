"""A language model of 10 million parameters on MedQuAD, made light: its own documents first, then unseen public ones.

    python benchmarks/light_medquad.py medquad.jsonl.gz --work DIR                 # 25x at 5 %, the model trained once
    python benchmarks/light_medquad.py medquad.jsonl.gz --work DIR --target size=30x --steps 300

Half of the documents train the model (`--model-steps`); of the other half, which it has not seen, `fedglm lighten`
trains, chooses and measures on documents apart. The release, its record and its page lie in DIR.
"""

import argparse
import gzip
import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import fedglm
from fedglm.autoglm.federation import load_federation
from fedglm.autoglm.light.distillation.settings import DistillationSettings, Stage
from fedglm.autoglm.light.distillation.training import Progress, train_student
from fedglm.autoglm.models.heads import HEADS
from fedglm.autoglm.models.presets import PRESETS, make_glm_config
from fedglm.autoglm.models.release import save_release
from fedglm.autoglm.settings import DataSettings
from fedglm.cli.terminal.light_tables import print_light

_LENGTH = 128
_CHOOSING = 200  # sequences


def split(path: str, work: Path) -> tuple[Path, Path]:
    """Write the records of each half of the documents, by a hash of the document's name."""
    halves = work / "model.jsonl", work / "public.jsonl"
    if not all(half.exists() for half in halves):
        with gzip.open(path, "rt") as lines, halves[0].open("w") as first, halves[1].open("w") as second:
            for line in lines:
                record = json.loads(line)
                is_first = hashlib.sha256(record["unit"].encode()).digest()[0] % 2
                (first if is_first else second).write(
                    json.dumps({"text": record["text"], "unit": record["unit"]}) + "\n"
                )
    return halves


def report(progress: Progress) -> None:
    """Print an evaluation to stderr."""
    if progress.held_out is not None:
        print(f"  {progress.step}/{progress.steps} {progress.held_out.loss:.4f}", file=sys.stderr, flush=True)


def show_stages() -> Callable[[str, float], None]:
    """Print each stage to stderr as it begins."""
    shown: list[str] = []

    def show(stage: str, _: float) -> None:
        if shown[-1:] != [stage]:
            shown.append(stage)
            print(f"  {stage}", file=sys.stderr, flush=True)

    return show


def train(path: Path, folder: Path, preset: str, steps: int, rate: float) -> None:
    """Train the language model and save it; where it lies already, nothing is done."""
    if folder.exists():
        return
    began = time.monotonic()
    settings = DataSettings(source=str(path), unit_field="unit", length=_LENGTH, held_out=0.05)
    data = load_federation(settings, nodes=1, seed=0)
    task, site = data.task, data.sites[0]
    torch.manual_seed(0)
    config = make_glm_config(
        PRESETS[preset],
        vocab_size=task.vocab_size,
        pad_id=task.pad_id,
        bos_id=task.bos_id,
        eos_id=task.eos_id,
        tied=True,
    )
    model = HEADS[task.kind].glm(config)
    model.config.use_cache = False
    stage = Stage(steps=steps, alpha=0.0, learning_rate=rate, warmup_steps=steps // 20)
    training = DistillationSettings(stages=(stage,), evaluate_every=max(1, steps // 8))
    held_out = site.held_out.select(torch.arange(min(_CHOOSING, len(site.held_out))))
    trained = train_student(model, None, site.train, training, task=task, held_out=held_out, seed=0, progress=report)
    if trained.interrupted:
        sys.exit(130)
    save_release(model, task, folder)
    count = sum(parameter.numel() for parameter in model.parameters())
    loss, seconds = trained.held_out.loss, time.monotonic() - began
    print(f"{preset}: {count:,} parameters, {len(site.train)} sequences, loss {loss:.4f}; {seconds:.0f} s", flush=True)


def main() -> None:
    """Train the model, and make it light."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--work", type=Path, required=True, help="folder of the model and of what is made")
    parser.add_argument("--preset", choices=PRESETS, default="glm-10m")
    parser.add_argument("--model-steps", type=int, default=1500)
    parser.add_argument("--model-rate", type=float, default=1.5e-3)
    parser.add_argument("--target", default="size=25x")
    parser.add_argument("--tolerance", default="5%")
    parser.add_argument("--steps", type=int, default=400, help="of each training that makes it light")
    parser.add_argument("--comparison", action="store_true", help="also what each means alone gives")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chosen.work.mkdir(parents=True, exist_ok=True)
    own, public = split(chosen.data, chosen.work)
    folder = chosen.work / f"{chosen.preset}-{chosen.model_steps}"
    train(own, folder, chosen.preset, chosen.model_steps, chosen.model_rate)
    result = fedglm.lighten(
        folder,
        chosen.target,
        chosen.tolerance,
        out=f"{folder}-light",
        no_comparison=not chosen.comparison,
        progress=show_stages(),
        text=public,
        text_field="text",
        steps=chosen.steps,
        seed=0,
    )
    print_light(result.record, result.folder)


if __name__ == "__main__":
    main()
