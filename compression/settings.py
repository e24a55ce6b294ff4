"""Settings of the coding of updates and models, in a scenario or a deployment."""

from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedglm.compression.codec import Codec, CodecError, codec_options, make_codec
from fedglm.compression.codecs.budget import MIN_BYTES
from fedglm.compression.codecs.options import Density, Overshoot, Rank
from fedglm.compression.layout import Layout

_OPTIONS: Final = ("density", "rank", "overshoot")
"""Codec options that are settings of the same name; each codec takes those that it has."""


class CodingSettings(BaseModel):
    """A codec with its options, and whether error feedback is on.

    Attributes:
        codec: Name of the codec; see `fedglm.compression.codec`.
        density: Share of the coordinates that a sparse codec sends, in (0, 1]; dense codecs send all.
        rank: Average number of components per matrix of a low-rank codec.
        max_ratio: Maximum bytes of a message, as a share of dense float32; on the downlink, for each version that a
            node is missing. When given, the codec sends what fits: density and rank follow from it, update by update.
            Codecs of a fixed size take none.
        overshoot: Option of `topk-sign`: how far ahead of its drift a coordinate is sent, from 1 (not at all) to 2.
            Used only with feedback, which corrects the excess.
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
        """Build settings in code, refusing options that the codec does not have.

        Args:
            codec: Name of the codec.
            given: Settings by name; None leaves a setting at its default.

        Raises:
            CodecError: The codec or an option is unknown (near names are listed), or a value is out of range.
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
        """Share of the coordinates that are sent; None where it differs from update to update."""
        if self.max_ratio is not None:
            return None
        return self.density if self.is_sparse else 1.0

    @property
    def in_words(self) -> str:
        """The codec with its options, for display."""
        known = codec_options(self.codec)
        if self.max_ratio is not None:
            return f"{self.codec} within {self.max_ratio:.3g} of float32"
        options = [f"{name} {getattr(self, name):.3g}" for name in ("rank", "density") if name in known]
        return " ".join([self.codec, *(["at", " and ".join(options)] if options else [])])

    def make_codec(self, layout: Layout, *, envelope: int = 0) -> Codec:
        """Make the codec.

        Args:
            layout: Layout of the vectors to code.
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
    """Section `[update]`: coding of what a node sends.

    Attributes:
        residual_decay: Factor on the residual for each round that the node missed; 1 keeps it unchanged.
        residual_limit: Number of missed rounds after which a stale residual is dropped.
    """

    residual_decay: float = Field(default=1.0, ge=0, le=1)
    residual_limit: int = Field(default=20, ge=0, le=2**31)


class DownlinkSettings(CodingSettings):
    """Section `[downlink]`: coding of what the server sends.

    Attributes:
        grid: Float format to which every published model is rounded, so that a snapshot in that format is exact.
    """

    density: Density = 0.1
    grid: Literal["fp16", "fp32"] = "fp16"
