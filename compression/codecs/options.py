"""Options of codecs: each codec has a model of its own; the types here are shared by several.

Error messages quote a field's description.
"""

from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from fedglm.compression.codecs.budget import MIN_BYTES
from fedglm.compression.positions.coding import Coder

Density = Annotated[float, Field(gt=0, le=1, description="a number above 0 and at most 1")]
Rank = Annotated[float, Field(gt=0, le=4096, description="a number above 0 and at most 4096")]
Overshoot = Annotated[float, Field(ge=1, le=2, description="a number from 1 to 2")]
MaxBytes = Annotated[int | None, Field(ge=MIN_BYTES, description=f"a whole number from {MIN_BYTES}")]
CoderName = Annotated[Coder, Field(description="smallest or fast")]


class CodecOptions(BaseModel):
    """Options of a codec; codecs without options use this class itself.

    Numbers may be numpy's; strings and bools are refused for them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return value.item() if isinstance(value, np.generic) else value


class SparseOptions(CodecOptions):
    """Options of codecs that send the largest magnitudes only.

    Attributes:
        density: Share of the elements that is sent.
        max_bytes: Maximum length of the whole blob; when given, as many elements are sent as fit.
        coder: Coder of the positions: the one with the fewest bytes (`smallest`), or the fastest (`fast`).
    """

    density: Density = 0.01
    max_bytes: MaxBytes = None
    coder: CoderName = "smallest"
