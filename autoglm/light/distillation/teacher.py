"""A frozen teacher: its logits, computed once per sequence as far as the memory for them goes."""

from __future__ import annotations

import torch

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.light.distillation.settings import DEFAULT_CACHE_BYTES
from fedglm.autoglm.settings import Precision
from fedglm.autoglm.tasks.task import compute_logits
from fedglm.autoglm.training.precision import choose_precision, torch_device


class Teacher:
    """Computes a model's logits on examples, without gradients or dropout.

    Logits are rounded to float16, kept or not, so that the bound on memory changes the student by float noise alone.

    Args:
        model: The model, moved to the device of training; it is not changed, and keeps its mode.
        examples: Examples that are asked for by index.
        precision: Format of its forward passes; ``auto`` chooses by device and size.
        cache_bytes: Maximum bytes of kept logits.

    Attributes:
        examples: The examples.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        examples: Examples,
        *,
        precision: Precision = "auto",
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        device = torch_device("auto")
        size = sum(parameter.numel() for parameter in model.parameters())
        self.examples = examples
        self._model, self._precision = model.to(device), choose_precision(precision, size, device)
        self._left = cache_bytes
        self._kept: dict[int, torch.Tensor] = {}

    @property
    def kept_bytes(self) -> int:
        """Bytes of the logits in memory."""
        return sum(logits.nbytes for logits in self._kept.values())

    def logits(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the logits of some sequences, float32, on the teacher's device: (B, C), or (B, t, V) padded with 0.

        t is the length of the longest of the B sequences, as in ``Examples.batch``.
        """
        wanted = indices.tolist()
        fresh = dict(self._compute([i for i in wanted if i not in self._kept]))
        for i, logits in fresh.items():
            if i not in self._kept and logits.nbytes <= self._left:
                self._left -= logits.nbytes
                self._kept[i] = logits.clone()  # a view would keep the whole batch in memory
        rows = [self._kept[i] if i in self._kept else fresh[i] for i in wanted]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self._precision.device).float()

    def _compute(self, indices: list[int]) -> list[tuple[int, torch.Tensor]]:
        if not indices:
            return []
        training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad(), self._precision.autocast():
                logits, _ = compute_logits(self._model, self.examples.batch(indices))
        finally:
            self._model.train(training)
        halves = logits.half().cpu()
        if halves.dim() == 2:
            return list(zip(indices, halves, strict=True))
        lengths = self.examples.lengths[indices].tolist()
        return [(i, row[:length]) for i, row, length in zip(indices, halves, lengths, strict=True)]
