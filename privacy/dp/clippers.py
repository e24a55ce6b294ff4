"""Choice of the clipper for a model."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from fedglm.privacy.dp.clipping import Clipper

ClippingMode = Literal["auto", "ghost", "hooks"]


def make_clipper(
    model: nn.Module, parameters: Sequence[nn.Parameter], clipping_norm: float, mode: ClippingMode = "auto"
) -> Clipper:
    """Make the clipper of a mode; `auto` is `ghost` where that supports all trainable layers, else `hooks`.

    Raises:
        PrivacyError: The model cannot be trained privately in this mode.
    """
    from fedglm.privacy.dp.ghost_clipping import GhostClipper
    from fedglm.privacy.dp.ghost_layers import find_unsupported_layers

    if mode == "ghost" or (mode == "auto" and not find_unsupported_layers(model)):
        return GhostClipper(model, parameters, clipping_norm)
    from fedglm.privacy.dp.sample_clipping import SampleClipper  # Opacus takes seconds to import

    return SampleClipper(model, parameters, clipping_norm)
