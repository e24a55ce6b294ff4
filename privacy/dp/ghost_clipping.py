"""Clipping with one forward and one backward pass, for the layers of the GLM family, tied embeddings included.

Opacus' ghost clipping goes backward twice, and refuses tied embeddings; its per-sample gradients come on top of the
gradients that autograd computes for the batch and nobody needs. Here each trainable layer runs as an autograd function
of its own (book-keeping: Bu et al., arXiv:2210.00038): backward hands on the gradient of the layer's input, makes none
for the weight, and books what went in and what came back. Units' norms come from the books as soon as the last use of a
weight is booked, while they lie in the cache. The clipped sum then needs no second pass: where there is memory the
units' gradients were kept and are summed, else it is one product of the books, scaled. Measured against Opacus in
`benchmarks/dp_step.py`.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
from torch import nn

from fedglm.privacy.dp.clipping import Clipper, squared_norms, unit_sums
from fedglm.privacy.dp.ghost_layers import Booked, runner_of, unknown_layers
from fedglm.privacy.dp.ghost_norms import Use, squared_norms_of, transpose_is_cheaper, write_gradients
from fedglm.privacy.errors import PrivacyError

KEPT_BYTES = 64 << 20
"""Memory for units' gradients that are kept for the sum; what does not fit is computed again. More pays little."""


class GhostClipper(Clipper):
    """See `Clipper`. Knows `Linear`, `Embedding` and the RMS norms of transformers; adapters of LoRA are `Linear`.

    Args:
        model: see `Clipper`.
        parameters: see `Clipper`.
        clipping_norm: see `Clipper`.
        kept_bytes: memory for units' gradients, the trade between speed and memory; 0 keeps none.

    Raises:
        PrivacyError: as `Clipper`, or a layer trains that this does not know.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        clipping_norm: float,
        *,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        super().__init__(model, parameters, clipping_norm)
        unknown = unknown_layers(model)
        if unknown:
            raise PrivacyError(f"ghost clipping does not know how to clip {unknown[0]}: choose clipping mode hooks")
        self._kept_bytes = kept_bytes
        self._rooms: dict[int, torch.Tensor] = {}
        self._places = {id(parameter): place for place, parameter in enumerate(self._parameters)}
        self._patched: list[nn.Module] = []
        self._forget()

    def __enter__(self) -> Self:
        """Run the trainable layers by way of the books."""
        for module in self._model.modules():
            runner = runner_of(module)
            if runner is not None:
                module.forward = Booked(self, module, runner, module.forward)
                self._patched.append(module)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the layers back their own forward."""
        for module in self._patched:
            del module.forward
        self._patched.clear()
        self._forget()
        self.drop_gradients()

    def begin(self) -> None:
        """Start a new sum at zero; a pass that was never finished is forgotten."""
        super().begin()
        self._forget()

    def await_use(self, parameter: torch.Tensor) -> None:
        """A forward pass used a parameter: backward will book it."""
        self._awaited[self._places[id(parameter)]] += 1

    def book(self, parameter: torch.Tensor, left: torch.Tensor | None, right: torch.Tensor) -> None:
        """Backward reached a use of a parameter.

        Args:
            parameter: (rows, columns), or (columns,) with rows = 1.
            left: (B, ..., rows), or row numbers (B, ...), or None for a use that has a gradient of its own for each
                record, given as ``right``.
            right: (B, ..., columns).
        """
        place, records = self._places[id(parameter)], len(self._owners)
        if len(right) != records or (left is not None and len(left) != records):
            raise PrivacyError(
                f"a layer that trains was given {len(right)} rows for {records} records: it does not work record by "
                "record; freeze it, or choose another model"
            )
        if left is None:
            summed = unit_sums(right.float().reshape(records, -1), self._owners, self._units)[:, None]
            left = summed.new_ones(self._units, 1, 1)
            use = Use(left, summed)
        else:
            tokens = right.reshape(records, -1, right.shape[-1])
            whole = left.is_floating_point()
            use = Use(
                self._by_unit(left.reshape(records, -1, left.shape[-1]) if whole else left.reshape(records, -1)),
                self._by_unit(tokens),
            )
        self._uses[place].append(use)
        self._awaited[place] -= 1
        if not self._awaited[place]:
            self._close(place)

    def _close(self, place: int) -> None:
        """All uses of a parameter are booked: take its units' norms, and keep their gradients where memory allows."""
        uses, parameter = self._uses[place], self._parameters[place]
        rows, columns = _shape(parameter)
        room = self._room(place)
        if room is not None:
            transposed = transpose_is_cheaper(uses, rows, columns)
            kept = room.view(self._units, *((columns, rows) if transposed else (rows, columns)))
            write_gradients([use.transposed() for use in uses] if transposed else uses, kept)
            self._squares += squared_norms(kept)
            self._kept.append((place, kept, transposed))
            uses.clear()
        else:
            self._squares += squared_norms_of(uses, rows, columns)

    def _room(self, place: int) -> torch.Tensor | None:
        """Room for units' gradients of a parameter, (U, size) float32, or None where memory does not allow it.

        It is used again from batch to batch: fresh pages cost as much as what is written on them.
        """
        old, size = self._rooms.get(place), self._parameters[place].numel()
        if old is None or len(old) < self._units:
            more = 4 * size * (self._units - (0 if old is None else len(old)))
            if self._kept_bytes < more:
                return None
            self._kept_bytes -= more
            self._rooms[place] = old = torch.empty(self._units, size, device=self.total.device)
        return old[: self._units]

    def _add(self, losses: torch.Tensor, owners: torch.Tensor, counts: torch.Tensor, weights: torch.Tensor) -> None:
        self._owners, self._units = owners, len(counts)
        self._most = int(counts.max())
        if self._most > 1:
            firsts = counts.cumsum(0) - counts
            self._slots = owners * self._most + torch.arange(len(owners), device=owners.device) - firsts[owners]
        self._squares = torch.zeros(self._units, dtype=torch.float64, device=self.total.device)
        torch.autograd.backward(losses, weights.to(losses.dtype))
        for place, awaited in enumerate(self._awaited):
            if awaited:
                raise PrivacyError(
                    f"backward did not come to all uses of parameter {place}: gradient checkpointing and losses that "
                    "leave out a part of the model are not supported; choose clipping mode hooks"
                )
        factors, finite = self._coefficients(self._squares)
        for place, kept, transposed in self._kept:
            self._add_clipped(place, kept, factors, finite, transposed=transposed)
        for place, uses in enumerate(self._uses):
            for use in uses:
                use.add_clipped(self._shares[place].view(_shape(self._parameters[place])), factors, finite)
        self._forget()

    def _by_unit(self, values: torch.Tensor) -> torch.Tensor:
        """Records (B, N, ...) one after the other in their units, (U, most * N, ...), with zeros to fill."""
        if self._most == 1:
            return values
        filled = values.new_zeros(self._units * self._most, *values.shape[1:])
        filled[self._slots] = values
        return filled.view(self._units, self._most * values.shape[1], *values.shape[2:])

    def _forget(self) -> None:
        self._awaited = [0] * len(self._parameters)
        self._uses: list[list[Use]] = [[] for _ in self._parameters]
        self._kept: list[tuple[int, torch.Tensor, bool]] = []


def _shape(parameter: torch.Tensor) -> tuple[int, int]:
    return (1, parameter.numel()) if parameter.dim() == 1 else (parameter.shape[0], parameter.shape[1])
