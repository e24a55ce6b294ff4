"""Clipping with one forward and one backward pass, for the layers of the GLM family, tied embeddings included.

Opacus' ghost clipping needs two backward passes, and rejects tied embeddings; its per-sample gradients are computed in
addition to autograd's gradients of the batch, which are not used. Here each trainable layer runs as an autograd
function of its own (book-keeping: Bu et al., arXiv:2210.00038): its backward returns the gradient of the layer's input,
computes none of the weight, and records the layer's input and its output gradient. Units' norms are computed from the
records as soon as the last use of a weight is recorded, while they are in the processor's cache. The clipped sum then
needs no second pass: where memory allows, the units' gradients were kept and are summed, else it is one scaled product
of the recorded tensors. Measured against Opacus in `benchmarks/dp_step.py`.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
from torch import nn

from fedglm.privacy.dp.clipping import Clipper, compute_squared_norms, sum_by_unit
from fedglm.privacy.dp.ghost_layers import RecordedForward, find_layer_function, find_unsupported_layers
from fedglm.privacy.dp.ghost_norms import Use, compute_weight_norms, is_transpose_cheaper, write_gradients
from fedglm.privacy.errors import PrivacyError

MAX_BUFFER_BYTES = 64 << 20
"""Memory for units' gradients that are kept for the sum; others are computed again. More memory helps little."""


class GhostClipper(Clipper):
    """A `Clipper` for `Linear`, `Embedding` and the RMS norms of transformers; LoRA adapters are `Linear`.

    Args:
        model: See `Clipper`.
        parameters: See `Clipper`.
        clipping_norm: See `Clipper`.
        max_buffer_bytes: Memory for units' gradients, in bytes: more is faster; 0 keeps none.

    Raises:
        PrivacyError: As `Clipper`, or a trainable layer is not supported.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        clipping_norm: float,
        *,
        max_buffer_bytes: int = MAX_BUFFER_BYTES,
    ) -> None:
        super().__init__(model, parameters, clipping_norm)
        unsupported = find_unsupported_layers(model)
        if unsupported:
            raise PrivacyError(f"ghost clipping does not know how to clip {unsupported[0]}: choose clipping mode hooks")
        self._free_bytes = max_buffer_bytes
        self._buffers: dict[int, torch.Tensor] = {}
        self._indices = {id(parameter): index for index, parameter in enumerate(self._parameters)}
        self._patched: list[nn.Module] = []
        self._reset()

    def __enter__(self) -> Self:
        """Replace the forward of the trainable layers."""
        for module in self._model.modules():
            function = find_layer_function(module)
            if function is not None:
                module.forward = RecordedForward(self, module, function, module.forward)
                self._patched.append(module)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the layers' own forward."""
        for module in self._patched:
            del module.forward
        self._patched.clear()
        self._reset()
        self.drop_gradients()

    def begin(self) -> None:
        """Start a new sum at zero; discard an unfinished pass."""
        super().begin()
        self._reset()

    def expect_use(self, parameter: torch.Tensor) -> None:
        """Count a use of a parameter in a forward pass, which backward will record."""
        self._pending[self._indices[id(parameter)]] += 1

    def record_use(self, parameter: torch.Tensor, left: torch.Tensor | None, right: torch.Tensor) -> None:
        """Record a use of a parameter that backward has reached.

        Args:
            parameter: The parameter, (rows, columns), or (columns,) with rows = 1.
            left: Left factor of the gradient, (B, ..., rows), or row indices, (B, ...), or None for a use whose
                gradient of each record is ``right``.
            right: Right factor of the gradient, (B, ..., columns).

        Raises:
            PrivacyError: The layer's first dimension is not the records.
        """
        index, records = self._indices[id(parameter)], len(self._owners)
        if len(right) != records or (left is not None and len(left) != records):
            raise PrivacyError(
                f"a layer that trains was given {len(right)} rows for {records} records: it does not work record by "
                "record; freeze it, or choose another model"
            )
        if left is None:
            summed = sum_by_unit(right.float().reshape(records, -1), self._owners, self._units)[:, None]
            left = summed.new_ones(self._units, 1, 1)
            use = Use(left, summed)
        else:
            tokens = right.reshape(records, -1, right.shape[-1])
            shape = (records, -1, left.shape[-1]) if left.is_floating_point() else (records, -1)
            use = Use(self._arrange_by_unit(left.reshape(shape)), self._arrange_by_unit(tokens))
        self._uses[index].append(use)
        self._pending[index] -= 1
        if not self._pending[index]:
            self._process_uses(index)

    def _process_uses(self, index: int) -> None:
        """Compute the units' norms once all uses of a parameter are recorded; keep gradients where memory allows."""
        uses, parameter = self._uses[index], self._parameters[index]
        rows, columns = _get_matrix_shape(parameter)
        buffer = self._get_buffer(index)
        if buffer is not None:
            transposed = is_transpose_cheaper(uses, rows, columns)
            kept = buffer.view(self._units, *((columns, rows) if transposed else (rows, columns)))
            write_gradients([use.transpose() for use in uses] if transposed else uses, kept)
            self._squares += compute_squared_norms(kept)
            self._kept.append((index, kept, transposed))
            uses.clear()
        else:
            self._squares += compute_weight_norms(uses, rows, columns)

    def _get_buffer(self, index: int) -> torch.Tensor | None:
        """Return a buffer for units' gradients of a parameter, (U, size), float32; None where memory does not allow it.

        It is reused from batch to batch: allocating new pages takes as long as writing them.
        """
        old, size = self._buffers.get(index), self._parameters[index].numel()
        if old is None or len(old) < self._units:
            more = 4 * size * (self._units - (0 if old is None else len(old)))
            if self._free_bytes < more:
                return None
            self._free_bytes -= more
            self._buffers[index] = old = torch.empty(self._units, size, device=self.total.device)
        return old[: self._units]

    def _add(self, losses: torch.Tensor, owners: torch.Tensor, counts: torch.Tensor, weights: torch.Tensor) -> None:
        self._owners, self._units = owners, len(counts)
        self._max_records = int(counts.max())
        if self._max_records > 1:
            firsts = counts.cumsum(0) - counts
            self._slots = owners * self._max_records + torch.arange(len(owners), device=owners.device) - firsts[owners]
        self._squares = torch.zeros(self._units, dtype=torch.float64, device=self.total.device)
        torch.autograd.backward(losses, weights.to(losses.dtype))
        for index, pending in enumerate(self._pending):
            if pending:
                raise PrivacyError(
                    f"backward did not come to all uses of parameter {index}: gradient checkpointing and losses that "
                    "leave out a part of the model are not supported; choose clipping mode hooks"
                )
        factors, finite = self._compute_factors(self._squares)
        for index, kept, transposed in self._kept:
            self._add_clipped(index, kept, factors, finite, transposed=transposed)
        for index, uses in enumerate(self._uses):
            for use in uses:
                use.add_clipped(self._shares[index].view(_get_matrix_shape(self._parameters[index])), factors, finite)
        self._reset()

    def _arrange_by_unit(self, values: torch.Tensor) -> torch.Tensor:
        """Concatenate the records, (B, N, ...), of each unit: (U, max_records * N, ...), padded with zeros."""
        if self._max_records == 1:
            return values
        padded = values.new_zeros(self._units * self._max_records, *values.shape[1:])
        padded[self._slots] = values
        return padded.view(self._units, self._max_records * values.shape[1], *values.shape[2:])

    def _reset(self) -> None:
        self._pending = [0] * len(self._parameters)
        self._uses: list[list[Use]] = [[] for _ in self._parameters]
        self._kept: list[tuple[int, torch.Tensor, bool]] = []


def _get_matrix_shape(parameter: torch.Tensor) -> tuple[int, int]:
    return (1, parameter.numel()) if parameter.dim() == 1 else (parameter.shape[0], parameter.shape[1])
