"""Formats of a release's two graphs: of the one that reads a prompt, and of the one that writes token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fedglm.autoglm.light.graph.formats import GraphFormat


@dataclass(frozen=True, kw_only=True)
class PhaseFormats:
    """Formats by phase; where they are equal, one graph serves both.

    Attributes:
        prefill: Format of the graph that reads several tokens.
        decode: Format of the graph that reads one.
    """

    prefill: GraphFormat
    decode: GraphFormat


NARROWEST: Final = PhaseFormats(prefill="int4", decode="int4")
"""The narrowest kernels, which decode fastest, in one graph, which is smallest: where no device is named."""
DENSE: Final = PhaseFormats(prefill="fp32", decode="fp32")
"""Formats of the dense model, for comparison."""
