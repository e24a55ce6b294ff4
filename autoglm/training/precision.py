"""Mixed precision: the number format of local training. The master weights are always float32.

bf16 needs no loss scaling and is faster on a CPU only with hardware support (AVX-512 BF16 or AMX) and above some model
size: measured 1.5 x at 10 M parameters and 0.87 x at 0.84 M. fp16 with loss scaling is for GPUs without bf16.
"""

import contextlib
import platform
from dataclasses import dataclass
from typing import Literal

import torch

from fedglm.autoglm.settings import Device, Precision
from fedglm.core.errors import FedglmError

BF16_PAYS_FROM = 5_000_000
"""Number of parameters from which bf16 autocast is faster than fp32 on a CPU with hardware support."""


class PrecisionError(FedglmError, ValueError):
    """The device does not exist, or cannot train in the requested precision."""


@dataclass(frozen=True)
class ChosenPrecision:
    """A number format and the reason of its choice.

    Attributes:
        name: `fp32`, `bf16` or `fp16`.
        reason: Reason as one clause, for display.
        device: Device to train on.
    """

    name: Literal["fp32", "bf16", "fp16"]
    reason: str
    device: torch.device

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which forward passes compute in this format."""
        if self.name == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.name == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Return a loss scaler, which is enabled only in fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


def torch_device(wanted: Device) -> torch.device:
    """Return the device to train on; `auto` takes a GPU where there is one."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def choose_precision(
    wanted: Precision, parameters: int, device: torch.device, *, private: bool = False
) -> ChosenPrecision:
    """Choose the format for `auto` by device and size; check that an explicit format is supported.

    Args:
        wanted: The setting.
        parameters: Number of parameters of the model.
        device: Device to train on.
        private: Whether gradients are clipped for DP: never in fp16, whose loss scaling distorts their norms.

    Raises:
        PrecisionError: A GPU is requested where there is none; fp16 on a CPU, which underflows there without being
            faster; or fp16 where gradients are clipped for DP.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise PrecisionError("device cuda was asked for, and torch finds no GPU: choose auto or cpu")
    if wanted == "fp16" and device.type == "cpu":
        raise PrecisionError("precision fp16 needs a GPU: on a CPU choose auto, bf16 or fp32")
    if wanted == "fp16" and private:
        raise PrecisionError("precision fp16 distorts the norms that privacy rests on: choose auto, bf16 or fp32")
    if wanted != "auto":
        return ChosenPrecision(wanted, "as asked for", device)
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return ChosenPrecision("bf16", "the GPU computes in bf16", device)
        if private:
            return ChosenPrecision("fp32", "the GPU has no bf16, and fp16 distorts the norms that are clipped", device)
        return ChosenPrecision("fp16", "the GPU has no bf16", device)
    if device.type == "cpu" and _cpu_has_bf16():
        if parameters >= BF16_PAYS_FROM:
            return ChosenPrecision("bf16", "the CPU has bf16 and the model is large enough to gain", device)
        return ChosenPrecision("fp32", f"below {BF16_PAYS_FROM / 1e6:.0f} M parameters bf16 is slower", device)
    return ChosenPrecision("fp32", f"no fast bf16 on this {platform.machine()} {device.type}", device)


def _cpu_has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
