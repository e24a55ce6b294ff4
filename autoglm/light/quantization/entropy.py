"""The length of codes under an entropy code: measured, and as a term of the loss."""

from __future__ import annotations

import torch

from fedglm.autoglm.light.quantization.scheme import Scheme


def measure_entropy(codes: torch.Tensor, scheme: Scheme) -> float:
    """Return the entropy of the codes' frequencies in bits a code: what a coder without contexts cannot go below."""
    counts = _count(codes, scheme)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log2()).sum())


def soft_length(places: torch.Tensor, codes: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return the total length of codes in bits, a scalar, with gradients for the weights.

    A code costs the logarithm of its frequency (entropy-constrained quantization, Chou et al., IEEE Trans. ASSP 37(1),
    1989); between two codes the cost is taken as linear, so that a weight is drawn to the more frequent of its two
    neighbours. Frequencies are counted with one more of each code, so that none costs without bound.

    Args:
        places: Weights in units of their step, as ``Grid.positions`` returns them, with gradients.
        codes: Their codes, without.
        scheme: Scheme of the codes.
    """
    counts = _count(codes, scheme) + 1
    costs = -(counts / counts.sum()).log2().to(places.dtype)
    within = places.clamp(scheme.low, scheme.high)
    lower = within.detach().floor().clamp(max=scheme.high - 1)
    index = (lower - scheme.low).long()
    return (costs[index] + (within - lower) * (costs[index + 1] - costs[index])).sum()


def _count(codes: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return how often each code occurs, (levels,), float64."""
    return torch.bincount((codes.flatten() - scheme.low).long(), minlength=scheme.high - scheme.low + 1).double()
