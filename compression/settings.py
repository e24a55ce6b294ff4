"""How updates and models are coded, as a scenario or a deployment states it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedglm.compression.codec import Codec, codec_options, make_codec
from fedglm.compression.layout import Layout


class CodingSettings(BaseModel):
    """A codec, and whether what it leaves out is kept for later.

    Attributes:
        codec: Name of the codec; see `fedglm.compression.codec`.
        density: Share of the coordinates that a sparse codec sends, in (0, 1]; dense codecs send all.
        feedback: Keep what was not sent and add it to the next update (Seide et al. 2014; Karimireddy et al. 2019).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    codec: str = "topk-sign"
    density: float = Field(default=0.05, gt=0, le=1)
    feedback: bool = True

    @model_validator(mode="after")
    def _codec_exists(self) -> "CodingSettings":
        self.make_codec()
        return self

    @property
    def is_sparse(self) -> bool:
        """Whether the codec sends a chosen share of the coordinates."""
        return "density" in codec_options(self.codec)

    @property
    def effective_density(self) -> float:
        """Share of the coordinates that travel."""
        return self.density if self.is_sparse else 1.0

    def make_codec(self, layout: Layout | None = None) -> Codec:
        """The codec itself. `CodecError` (a `ValueError`) when the name is unknown."""
        options: dict[str, Any] = {"density": self.density} if self.is_sparse else {}
        return make_codec(self.codec, layout=layout, **options)


class UpdateSettings(CodingSettings):
    """`[update]`: what a node sends.

    Attributes:
        residual_decay: Factor on the residual for each round that the node missed; 1 keeps it whole.
        residual_limit: Missed rounds after which a residual is too stale and is dropped.
    """

    residual_decay: float = Field(default=0.9, ge=0, le=1)
    residual_limit: int = Field(default=20, ge=0)


class DownlinkSettings(CodingSettings):
    """`[downlink]`: what the server sends.

    Attributes:
        grid: Every published model lies on this grid of floats, so that a snapshot in it is exact.
    """

    density: float = Field(default=0.1, gt=0, le=1)
    grid: Literal["fp16", "fp32"] = "fp16"
