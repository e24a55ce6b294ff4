"""How updates and models are coded, as a scenario or a deployment states it."""

from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedglm.compression.codec import Codec, CodecError, codec_options, make_codec
from fedglm.compression.codecs.budget import MIN_BYTES
from fedglm.compression.codecs.options import Density, Overshoot, Rank
from fedglm.compression.layout import Layout

_OPTIONS: Final = ("density", "rank", "overshoot")
"""Options of codecs that are settings by the same name; a codec takes those that it has."""


class CodingSettings(BaseModel):
    """A codec, and whether what it leaves out is kept for later.

    Attributes:
        codec: Name of the codec; see `fedglm.compression.codec`.
        density: Share of the coordinates that a sparse codec sends, in (0, 1]; dense codecs send all.
        rank: Components that a low-rank codec gives a matrix on average.
        max_ratio: Most bytes of a message, as a share of dense float32; towards the nodes, for each version that they
            lack. When given, the codec sends what fits: density and rank follow from it, update by update. Codecs of a
            fixed size take none.
        overshoot: Of `topk-sign`: how far ahead of its drift a coordinate is sent, from 1 (not at all) to 2. Only with
            feedback, which takes back what was too much.
        feedback: Keep what was not sent and add it to the next update (Seide et al. 2014; Karimireddy et al. 2019).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    codec: str = Field(default="topk-sign", max_length=200)
    density: Density = 0.05
    rank: Rank = 4
    max_ratio: float | None = Field(default=None, gt=0, le=1)
    overshoot: Overshoot = 2.0
    feedback: bool = True

    @classmethod
    def of(cls, codec: str, **given: Any) -> Self:
        """Settings that are given in code, where nothing stands for a codec that does not have it.

        Args:
            codec: Name of the codec.
            given: Settings by name; None for what is not given.

        Raises:
            CodecError: There is no such codec, it does not have an option, or a value is none of it; near names are
                listed.
        """
        given = {name: value for name, value in given.items() if value is not None}
        make_codec(codec, **{name: given[name] for name in _OPTIONS if name in given})
        try:
            return cls(codec=codec, **given)
        except ValidationError as exc:
            fault = exc.errors()[0]
            reason = fault["msg"].removeprefix("Value error, ")
            place = f"{'.'.join(map(str, fault['loc']))} = {fault['input']!r}: " if fault["loc"] else ""
            raise CodecError(f"{place}{reason[:1].lower()}{reason[1:]}") from exc

    @model_validator(mode="after")
    def _codec_exists(self) -> "CodingSettings":
        known = codec_options(self.codec)
        if self.max_ratio is not None and "max_bytes" not in known:
            raise ValueError(f"the codec {self.codec!r} has a fixed size: it takes no max_ratio")
        return self

    @property
    def is_sparse(self) -> bool:
        """Whether the codec sends a chosen share of the coordinates."""
        return "density" in codec_options(self.codec)

    @property
    def effective_density(self) -> float | None:
        """Share of the coordinates that travel; None where each update has its own."""
        if self.max_ratio is not None:
            return None
        return self.density if self.is_sparse else 1.0

    @property
    def in_words(self) -> str:
        """The codec with what it was set to, for people."""
        known = codec_options(self.codec)
        if self.max_ratio is not None:
            return f"{self.codec} within {self.max_ratio:.3g} of float32"
        said = [f"{name} {getattr(self, name):.3g}" for name in ("rank", "density") if name in known]
        return " ".join([self.codec, *(["at", " and ".join(said)] if said else [])])

    def make_codec(self, layout: Layout, *, envelope: int = 0) -> Codec:
        """The codec itself.

        Args:
            layout: Tensors behind the vectors.
            envelope: Bytes of the message around the blob, which count towards `max_ratio`.

        Raises:
            CodecError: `max_ratio` leaves no room for a blob.
        """
        known = codec_options(self.codec)
        options: dict[str, Any] = {name: getattr(self, name) for name in _OPTIONS if name in known}
        if not self.feedback:
            options.pop("overshoot", None)
        if self.max_ratio is not None:
            room = int(self.max_ratio * 4 * layout.size) - envelope
            if room < MIN_BYTES:
                raise CodecError(
                    f"max_ratio {self.max_ratio:g} of {4 * layout.size} bytes leaves {max(room, 0)} for the update, "
                    f"and the message around it takes {envelope}: give at least "
                    f"{(envelope + MIN_BYTES) / (4 * layout.size):.2g}"
                )
            options["max_bytes"] = room
        return make_codec(self.codec, layout=layout, **options)


class UpdateSettings(CodingSettings):
    """`[update]`: what a node sends.

    Attributes:
        residual_decay: Factor on the residual for each round that the node missed; 1 keeps it whole.
        residual_limit: Missed rounds after which a residual is too stale and is dropped.
    """

    residual_decay: float = Field(default=1.0, ge=0, le=1)
    residual_limit: int = Field(default=20, ge=0, le=2**31)


class DownlinkSettings(CodingSettings):
    """`[downlink]`: what the server sends.

    Attributes:
        grid: Every published model lies on this grid of floats, so that a snapshot in it is exact.
    """

    density: Density = 0.1
    grid: Literal["fp16", "fp32"] = "fp16"
