"""The federated parameters: those that train, each storage once, as one flat float32 vector in a fixed order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from fedglm.autoglm.errors import ModelError


def federated_parameters(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Return names and parameters with ``requires_grad``, in the module's order.

    A tied output layer has the embedding's storage and is listed once (``state_dict()`` lists it twice). With LoRA
    these are the adapters and the classification head alone.
    """
    seen: set[tuple[torch.device, int, torch.Size, tuple[int, ...]]] = set()
    chosen = []
    for name, parameter in model.named_parameters():
        # On the meta device nothing has an address, and tied weights are one parameter, which is listed once anyway.
        address = id(parameter) if parameter.is_meta else parameter.data_ptr()
        storage = (parameter.device, address, parameter.shape, parameter.stride())
        if parameter.requires_grad and parameter.numel() and storage not in seen:
            seen.add(storage)
            chosen.append((name, parameter))
    return chosen


def to_vector(model: torch.nn.Module) -> npt.NDArray[np.float32]:
    """Concatenate the federated parameters to a copy of shape (size,), float32.

    Raises:
        ModelError: No parameter of the model trains.
    """
    parts = [parameter.detach().float().flatten().cpu() for _, parameter in federated_parameters(model)]
    if not parts:
        raise ModelError("no parameter of the model trains: there is nothing to federate")
    vector: npt.NDArray[np.float32] = torch.cat(parts).numpy()
    return vector


def load_vector(model: torch.nn.Module, vector: npt.NDArray[np.float32]) -> None:
    """Write a flat vector into the federated parameters, in place (the inverse of ``to_vector``).

    Raises:
        ModelError: The vector has another shape than (size,), is not floating-point, or holds NaN or infinity; the
            model is then unchanged.
    """
    targets = [parameter for _, parameter in federated_parameters(model)]
    size = sum(parameter.numel() for parameter in targets)
    if vector.shape != (size,) or vector.dtype.kind != "f":
        raise ModelError(f"the model takes a float vector of shape ({size},), not {vector.dtype} {vector.shape}")
    if not np.isfinite(vector).all():
        raise ModelError("the vector holds NaN or infinity; the model was left as it was")
    source = torch.tensor(vector, dtype=torch.float32)
    start = 0
    with torch.no_grad():
        for parameter in targets:
            parameter.copy_(source[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()
