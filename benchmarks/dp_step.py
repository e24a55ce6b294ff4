"""What a step costs under differential privacy, against the same step without it.

    python benchmarks/dp_step.py [--only WORD] [--turns N]

GLMs of about 0.5, 1 and 5 million parameters, 16 sequences of 64 tokens, each a privacy unit; one thread. A step is
forward, backward and AdamW; under privacy also clipping and noise. Full: all parameters of a language model with tied
embeddings. LoRA: rank 8 on its linear layers. The cases take turns in one process and the least time of each counts, on
the thread's own clock, which stops while another program has the core; ratios are to the step without privacy of the
same model. Opacus draws its noise from torch's Mersenne Twister, ours comes from ChaCha20: the column "noise" says what
of our ratio that is. Opacus' ghost clipping refuses tied embeddings: there it runs, and is compared, on the untied
model. "memory" is how far the process grew during a step (the peak over what it held before), in MB.
"""

import argparse
import ctypes
import gc
import os
import warnings
from collections.abc import Callable
from time import thread_time

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import nn
from torch.nn import functional
from transformers import GlmForCausalLM

from fedglm.autoglm.models.lora import attach_lora
from fedglm.autoglm.models.parameters import federated_parameters
from fedglm.autoglm.models.presets import Preset, make_glm_config
from fedglm.autoglm.tasks.language_modeling import LanguageModeling
from fedglm.autoglm.tasks.task import Task
from fedglm.privacy.dp.dp_sgd import compute_noised_mean
from fedglm.privacy.dp.ghost_clipping import MAX_BUFFER_BYTES, GhostClipper
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.dp.noise import GaussianNoise

SEQUENCES, TOKENS, VOCABULARY = 16, 64, 256
SIZES = {
    "0.5 M": Preset(hidden=128, layers=3, heads=4, kv_heads=2, intermediate=256, max_length=256),
    "1 M": Preset(hidden=128, layers=6, heads=4, kv_heads=2, intermediate=320, max_length=256),
    "5 M": Preset(hidden=256, layers=8, heads=8, kv_heads=2, intermediate=640, max_length=256),
}
MECHANISM = Mechanism(
    sampling_rate=0.01, steps=1, clipping_norm=1.0, noise_multiplier=1.0, unit="record", records_per_unit=1
)
Step = Callable[[], None]


def task() -> Task:
    """Language modelling on bytes."""
    return LanguageModeling(length=TOKENS, vocab_size=VOCABULARY, pad_id=0, bos_id=1, eos_id=2)


def model(preset: Preset, *, lora: bool, tied: bool = True) -> nn.Module:
    """A language model with weights of its own, the same at each call."""
    torch.manual_seed(0)
    config = make_glm_config(preset, vocab_size=VOCABULARY, pad_id=0, bos_id=1, eos_id=2, tied=tied)
    config.use_cache = False
    plain = GlmForCausalLM(config)
    return (attach_lora(plain, rank=8, alpha=16.0, classifier=False) if lora else plain).train()


def batch() -> dict[str, torch.Tensor]:
    """One batch of random tokens."""
    ids = torch.randint(3, VOCABULARY, (SEQUENCES, TOKENS), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    """What the client trains with."""
    return torch.optim.AdamW([parameter for _, parameter in federated_parameters(module)], lr=1e-4)


def without_privacy(module: nn.Module) -> Step:
    """The step to compare with; the client's also clips the batch's gradient, which is left out."""
    optimizer, data, losses = optimizer_of(module), batch(), task().sequence_losses

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses(module, data).mean().backward()
        optimizer.step()

    return step


def opacus_hooks(module: nn.Module) -> Step:
    """Per-sample gradients, clipped and noised by Opacus' optimizer."""
    wrapped = GradSampleModule(module, loss_reduction="mean", strict=False)
    optimizer = DPOptimizer(
        optimizer_of(module), noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=SEQUENCES
    )
    data, losses = batch(), task().sequence_losses

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses(wrapped, data).mean().backward()
        optimizer.step()

    return step


class _TokenLosses:
    """A criterion as Opacus' ghost clipping wants it: losses of each token, and how they are reduced."""

    reduction = "mean"

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, targets, reduction="none")


def opacus_ghost(module: nn.Module) -> Step:
    """Two backward passes: one for the norms, one for the clipped sum."""
    wrapped = GradSampleModuleFastGradientClipping(
        module, max_grad_norm=1.0, use_ghost_clipping=True, loss_reduction="mean", strict=False
    )
    optimizer = DPOptimizerFastGradientClipping(
        optimizer_of(module), noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=SEQUENCES
    )
    criterion = DPLossFastGradientClipping(wrapped, optimizer, _TokenLosses(), loss_reduction="mean")
    data = batch()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = wrapped(**data).logits[:, :-1]
        targets = data["input_ids"][:, 1:]
        criterion(logits.reshape(-1, VOCABULARY), targets.flatten(), shape=targets.shape).backward()
        optimizer.step()

    return step


def ours(module: nn.Module, max_buffer_bytes: int = MAX_BUFFER_BYTES) -> Step:
    """One backward pass that books; noise from ChaCha20."""
    parameters = [parameter for _, parameter in federated_parameters(module)]
    clipper = GhostClipper(module, parameters, MECHANISM.clipping_norm, max_buffer_bytes=max_buffer_bytes)
    optimizer, data, losses, noise = optimizer_of(module), batch(), task().sequence_losses, GaussianNoise()
    owners = torch.arange(SEQUENCES)
    clipper.__enter__()

    def step() -> None:
        clipper.begin()
        clipper.add(losses(module, data), owners)
        gradient = compute_noised_mean(clipper.total, MECHANISM, noise, 100 * SEQUENCES)
        parts = torch.split(gradient, [parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        optimizer.step()
        clipper.drop_gradients()

    return step


def only_noise(module: nn.Module) -> Step:
    """What of our step is the noise."""
    noise, size = GaussianNoise(), sum(parameter.numel() for _, parameter in federated_parameters(module))

    def step() -> None:
        noise.normal(MECHANISM.noise_std, size)

    return step


def peak_megabytes(step: Step) -> float:
    """How far the process grew during a step; NaN where Linux does not say."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")
    except OSError:
        return float("nan")
    before = _status("VmRSS")
    step()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> float:
    with open("/proc/self/status") as lines:
        return next(float(line.split()[1]) for line in lines if line.startswith(field))


def least_times(cases: dict[str, Step], turns: int) -> dict[str, float]:
    """Seconds of each case's fastest step; the first turn only warms up."""
    least = dict.fromkeys(cases, float("inf"))
    for turn in range(turns + 1):
        for name, step in cases.items():
            start = thread_time()
            step()
            if turn:
                least[name] = min(least[name], thread_time() - start)
    return least


def measure(size: str, kind: str, turns: int) -> None:
    """Print the rows of one model."""
    preset, lora = SIZES[size], kind == "LoRA"

    def fresh(tied: bool = True) -> nn.Module:
        return model(preset, lora=lora, tied=tied)

    cases = {"without privacy": without_privacy(fresh()), "Opacus hooks": opacus_hooks(fresh()), "ours": ours(fresh())}
    if not lora:
        cases["ours, keeping none"] = ours(fresh(), max_buffer_bytes=0)
        cases["without privacy, untied"] = without_privacy(fresh(tied=False))
    cases["Opacus ghost" if lora else "Opacus ghost, untied"] = opacus_ghost(fresh(tied=False))
    cases["noise of ours"] = only_noise(fresh())
    least = least_times(cases, turns)
    trained = sum(parameter.numel() for _, parameter in federated_parameters(fresh()))
    for name, step in cases.items():
        basis = "without privacy, untied" if "untied" in name else "without privacy"
        times = f"{least[name] / least[basis]:6.2f} x {1e3 * least[name]:8.1f} ms"
        print(f"{size:6} {kind:5} {trained:9,d}  {name:24} {times} {peak_megabytes(step):7.0f}", flush=True)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="rows whose size and kind hold this, such as '1 M' or LoRA")
    parser.add_argument("--turns", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, one thread, {SEQUENCES} sequences of {TOKENS} tokens")
    print("model  what  trained    case                      ratio       least   memory (MB)")
    for size in SIZES:
        for kind in ("full", "LoRA"):
            if options.only in f"{size} {kind}":
                measure(size, kind, options.turns)


if __name__ == "__main__":
    main()
