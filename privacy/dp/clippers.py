"""Which clipper a model gets."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from fedglm.privacy.dp.clipping import Clipper

ClippingMode = Literal["auto", "ghost", "hooks"]


def make_clipper(
    model: nn.Module, parameters: Sequence[nn.Parameter], clipping_norm: float, mode: ClippingMode = "auto"
) -> Clipper:
    """The clipper of a mode; `auto` is `ghost` where it knows all layers that train, else `hooks`.

    Raises:
        PrivacyError: the model cannot be trained privately in this mode.
    """
    from fedglm.privacy.dp.ghost_clipping import GhostClipper
    from fedglm.privacy.dp.ghost_layers import unknown_layers

    if mode == "ghost" or (mode == "auto" and not unknown_layers(model)):
        return GhostClipper(model, parameters, clipping_norm)
    from fedglm.privacy.dp.sample_clipping import SampleClipper  # Opacus takes seconds to import

    return SampleClipper(model, parameters, clipping_norm)
