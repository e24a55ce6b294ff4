"""How much quantization costs a language model: rounding, training, ternary codes, mixed bits, activations.

    fedglm simulate text --no-dp --seed 7 --out RUN
    python benchmarks/quantization.py RUN/model [--only rounding training ternary mixed activations] [--steps N]

The model is that of `text` (pydoc, 0.5 M, seed 7). Its held-out documents, which no training and no choice saw, give
the perplexity; calibration and training see public text alone (docstrings), a fifth of which chooses the best weights.
"control" is the float model trained for as many steps on the same batches, without a teacher. Columns: rise of the
perplexity against the released model, and against the control; share of positions whose likeliest token is the
released model's; bits a weight in the layers when packed at a fixed width, and the entropy of their codes; share of
zeros among them; size of all packed weights, the embedding's, norms and biases too, in kB and as a ratio to float32;
CPU seconds.
"""

import argparse
import copy
import math
import platform
import time
from collections.abc import Iterator

import torch

from fedglm.autoglm.data.examples import Examples, concatenate
from fedglm.autoglm.federation import load_federation
from fedglm.autoglm.light.distillation.settings import DistillationSettings, Stage
from fedglm.autoglm.light.distillation.training import train_student
from fedglm.autoglm.light.public_text import PublicText, load_public_text
from fedglm.autoglm.light.quantization.activations import (
    calibrate_ranges,
    measure_shift_curve,
    quantized_activations,
)
from fedglm.autoglm.light.quantization.calibration import shift_tokens
from fedglm.autoglm.light.quantization.quantizer import QuantizedModel, Quantizer
from fedglm.autoglm.light.quantization.report import LayerReport
from fedglm.autoglm.light.quantization.scheme import Scheme
from fedglm.autoglm.light.quantization.settings import (
    MixedBitsSettings,
    QatSettings,
    QuantizationSettings,
    VerificationSettings,
)
from fedglm.autoglm.models.release import load_release
from fedglm.autoglm.settings import DataSettings
from fedglm.autoglm.tasks.task import Task
from fedglm.inference.weights.container import pack_weights

SECTIONS = ("rounding", "training", "ternary", "mixed", "activations")
INT8 = Scheme(codes="int8", block=128)
INT4 = Scheme(codes="int4", block=32)
INT4_ROW = Scheme(codes="int4", block="row")
TERNARY = Scheme(codes="ternary", block="row")
SPARSE = Scheme(codes="sparse-ternary", block="row")
ROUNDED = (
    *(Scheme(codes="int8", block=block) for block in (128, "row", "tensor")),
    *(Scheme(codes="int4", block=block) for block in (32, 128, "row", "tensor")),
    Scheme(codes="int4", block=32, symmetric=False),
    *(Scheme(codes=codes, block=32, symmetric=symmetric) for codes in ("int3", "int2") for symmetric in (True, False)),
    TERNARY,
    SPARSE,
)
METHODS = ("absmax", "mse", "weighted", "compensated")


def training(steps: int, rate: float) -> DistillationSettings:
    """Steps with the teacher's distribution, whose learning rate ends at 0."""
    stage = Stage(steps=steps, alpha=0.9, temperature=2.0, learning_rate=rate)
    return DistillationSettings(stages=(stage,), evaluate_every=50)


def rounded() -> Iterator[tuple[str, QuantizationSettings]]:
    """Every scheme by every method, with the embedding in INT8."""
    for scheme in ROUNDED:
        for method in METHODS:
            if not (scheme == SPARSE and method == "compensated"):
                yield method, QuantizationSettings(weights=scheme, embedding=INT8, method=method)


def trained(steps: int) -> Iterator[tuple[str, QuantizationSettings]]:
    """INT8, INT4 and less, with the embedding as wide as the layers or in INT4."""
    fine, coarse = training(steps, 2e-4), training(steps, 1e-3)
    yield "", QuantizationSettings(weights=INT8, embedding=INT8, qat=QatSettings(training=fine))
    for block in (64, 128):
        scheme = Scheme(codes="int4", block=block)
        yield "", QuantizationSettings(weights=scheme, embedding=INT4, qat=QatSettings(training=fine))
    for scheme in (INT4, INT4_ROW):
        yield "", QuantizationSettings(weights=scheme, embedding=INT4, qat=QatSettings(training=fine))
        yield "ema", QuantizationSettings(weights=scheme, embedding=INT4, qat=QatSettings(training=fine, scales="ema"))
    frozen = QatSettings(training=fine, frozen=("model.embed_tokens.*", "*norm.weight"))
    yield "embedding, norms frozen", QuantizationSettings(weights=INT4, embedding=INT4, qat=frozen)
    for codes in ("int3", "int2"):
        for block in (32, "row"):
            scheme = Scheme(codes=codes, block=block)
            yield "", QuantizationSettings(weights=scheme, embedding=INT4, qat=QatSettings(training=coarse))


def ternary(steps: int) -> Iterator[tuple[str, QuantizationSettings]]:
    """Thresholds, moving scales, the rate term, and 3:4 sparse codes."""
    coarse = training(steps, 1e-3)
    for zeros in (None, 0.31, 0.5, 0.58, 0.66, 0.74, 0.82):
        scheme = Scheme(codes="ternary", block="row", zeros=zeros)
        yield "", QuantizationSettings(weights=scheme, embedding=INT4, qat=QatSettings(training=coarse))
    yield "ema", QuantizationSettings(weights=TERNARY, embedding=INT4, qat=QatSettings(training=coarse, scales="ema"))
    yield (
        "block 32",
        QuantizationSettings(
            weights=Scheme(codes="ternary", block=32), embedding=INT4, qat=QatSettings(training=coarse)
        ),
    )
    for rate in (0.03, 0.1, 0.3):
        # The weights with the least loss would be those that the rate has moved the least.
        last = coarse.model_copy(update={"keep": "last"})
        qat = QatSettings(training=last, rate=rate)
        yield f"rate {rate}", QuantizationSettings(weights=TERNARY, embedding=INT4, qat=qat)
    qat = QatSettings(training=coarse)
    yield "", QuantizationSettings(weights=SPARSE, embedding=INT4, method="weighted", qat=qat)


def mixed() -> Iterator[tuple[str, QuantizationSettings]]:
    """A scheme for each matrix under budgets, and the repair of what deviates."""
    candidates = tuple(Scheme(codes=codes, block="row") for codes in ("int2", "int3", "int4", "int8"))
    for bits in (3.2, 4.2, 5.2):
        budget = MixedBitsSettings(bits_per_weight=bits, candidates=candidates)
        yield f"budget {bits} bits", QuantizationSettings(mixed=budget)
    for codes in ("int3", "int4"):
        scheme = Scheme(codes=codes, block="row")
        yield "all alike", QuantizationSettings(weights=scheme, embedding=scheme)
    for cosine in (0.98, 0.99):
        check = VerificationSettings(min_cosine=cosine, repair="bits")
        scheme = Scheme(codes="int3", block="row")
        yield f"repaired below {cosine}", QuantizationSettings(weights=scheme, embedding=scheme, verification=check)


class Table:
    """Measures models on unseen text and prints a line for each."""

    def __init__(self, model: torch.nn.Module, task: Task, text: PublicText, test: Examples, seed: int) -> None:
        self.model, self.task, self.text, self.test, self.seed = model, task, text, test, seed
        self.choosing = text.held_out.select(range(min(256, len(text.held_out))))
        self.best, self.tokens = task.evaluate(model, test), self.likeliest(model)
        self.control = self.best.loss

    def likeliest(self, model: torch.nn.Module) -> torch.Tensor:
        """Likeliest token at every predicted position."""
        found = []
        with torch.no_grad():
            for first in range(0, len(self.test), 64):
                batch = self.test.batch(range(first, min(first + 64, len(self.test))))
                logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                found.append(logits[:, :-1].argmax(-1)[batch["attention_mask"][:, 1:].bool()])
        return torch.cat(found)

    def train_control(self, settings: DistillationSettings) -> None:
        """Train the float model as long, and print its line."""
        started, student = time.process_time(), copy.deepcopy(self.model)
        alone = settings.without_teacher()
        train_student(student, None, self.text.train, alone, task=self.task, held_out=self.choosing, seed=self.seed)
        self.control = self.task.evaluate(student, self.test).loss
        self.line("control", student, started, None)

    def quantize(self, note: str, settings: QuantizationSettings) -> QuantizedModel:
        """Quantize, and print the line."""
        started = time.process_time()
        result = Quantizer(settings).quantize(self.model, self.task, self.text.train, self.choosing, seed=self.seed)
        name = "mixed" if settings.mixed else f"{settings.weights}, embedding {settings.embedding.codes}"
        self.line(f"{name} {note}", result.reference, started, result)
        return result

    def line(self, name: str, model: torch.nn.Module, started: float, result: QuantizedModel | None) -> None:
        """Print one line."""
        seconds = time.process_time() - started
        loss = self.task.evaluate(model, self.test).loss
        agreement = float((self.likeliest(model) == self.tokens).double().mean())
        codes = ""
        if result is not None:
            size = len(pack_weights(result.model.tensors))
            ratio = 4 * result.model.count_parameters() / size
            codes = f"{describe(result.report.layers)} {size / 1000:6.1f} {ratio:5.1f}x"
        print(
            f"{name:62} {math.expm1(loss - self.best.loss):+8.2%} {math.expm1(loss - self.control):+8.2%} "
            f"{agreement:6.1%} {codes:36} {seconds:4.0f} s",
            flush=True,
        )


def describe(layers: tuple[LayerReport, ...]) -> str:
    """Bits a weight packed and at the entropy, and the zeros within the layers."""
    inner = [layer for layer in layers if ".layers." in layer.name]
    weights = sum(layer.weights for layer in inner)
    entropy = sum(layer.entropy * layer.weights for layer in inner) / weights
    zeros = sum(layer.zeros * layer.weights for layer in inner) / weights
    packed = sum(layer.bits_per_weight * layer.weights for layer in inner) / weights
    return f"{packed:5.2f} {entropy:6.3f} {zeros:6.1%}"


def show_activations(table: Table) -> None:
    """INT8 activations, and what a wrong range or calibration on other text costs."""
    model, task, test = copy.deepcopy(table.model), table.task, table.test
    calibration = table.text.train.select(range(min(256, len(table.text.train))))
    with quantized_activations(model, "dynamic"):
        loss = task.evaluate(model, test).loss
    print(f"activations INT8, dynamic, block 32: {math.expm1(loss - table.best.loss):+.3%}")
    for share in (0.0, 0.1, 0.5, 1.0):
        other = shift_tokens(calibration, share, vocab_size=task.vocab_size, seed=table.seed)
        with quantized_activations(model, "static") as quantizers:
            calibrate_ranges(model, quantizers, other)
            loss = task.evaluate(model, test).loss
        settings = QuantizationSettings(weights=INT4, embedding=INT4, method="compensated")
        weights = Quantizer(settings).quantize(model, task, other, table.choosing).reference
        int4 = task.evaluate(weights, test).loss
        print(
            f"calibrated with {share:.0%} of the tokens random: activations INT8 static "
            f"{math.expm1(loss - table.best.loss):+.3%}, INT4 weights {math.expm1(int4 - table.best.loss):+.3%}",
            flush=True,
        )
    shifts = (-0.5, -0.3, -0.1, -0.05, 0.0, 0.05, 0.1, 0.3, 0.5, 1.0)
    for shift, rise in measure_shift_curve(model, task, calibration, test, shifts=shifts):
        print(f"static ranges off by {shift:+.0%}: {math.expm1(rise):+.3%}", flush=True)


def main() -> None:
    """Print the tables, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--only", nargs="*", default=SECTIONS, choices=SECTIONS)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--run-seed", type=int, default=7, help="seed of the run, which chose the held-out documents")
    parser.add_argument("--text", default="auto", help="public text: auto (docstrings), model, or a file")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model, task = load_release(chosen.model)
    settings = DataSettings(source="pydoc", length=task.length)
    sites = load_federation(settings, nodes=4, seed=chosen.run_seed).sites
    text = load_public_text(chosen.text, settings, task, model, seed=chosen.seed)
    table = Table(model, task, text, concatenate([site.held_out for site in sites]), chosen.seed)
    print(f"{platform.machine()}, torch {torch.__version__}, one thread; seed {chosen.seed}; {text.origin}")
    print(f"released model: loss {table.best.loss:.4f}, n = {table.best.count} held-out tokens", flush=True)
    if {"training", "ternary"} & {*chosen.only}:
        table.train_control(training(chosen.steps, 1e-3))
    sections = {
        "rounding": rounded(), "training": trained(chosen.steps), "ternary": ternary(chosen.steps), "mixed": mixed(),
    }  # fmt: skip
    for name, variants in sections.items():
        if name in chosen.only:
            print(f"\n{name}", flush=True)
            for note, wanted in variants:
                result = table.quantize(note, wanted)
                for layer in result.report.layers:
                    if layer.repair:
                        print(f"    {layer.name}: {'; '.join(layer.repair)}")
    if "activations" in chosen.only:
        print("\nactivations")
        show_activations(table)


if __name__ == "__main__":
    main()
