"""What came of making a run's model light; importable without torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from fedglm.core.files import write_atomically
from fedglm.core.untrusted_files import read_regular

_MAX_BYTES: Final = 1 << 20
_POST_PROCESSING: Final = (
    "made of the released model and of text that is no site's, so it is post-processing: it costs no privacy budget "
    "beyond the run's"
)


@dataclass(frozen=True, kw_only=True)
class LightOutcome:
    """A light release of a run, or why there is none.

    Attributes:
        round: Number of the round after which it was made.
        model_sha256: Hash (hex) of the model that it was made of.
        tolerance: Maximum rise, as a share.
        version: Number of the release in its federation; None where there is none.
        manifest: SHA-256 (hex) of the manifest, and so of every file; None where there is none.
        bytes: Bytes of the release; where there is none, of the last candidate that was trained in full, if any.
        size_ratio: Bytes of the dense model in FP32, a tied output layer counted once, over those.
        loss_rise: How much worse it is than an equally trained dense model, as a share: of that one's loss, or, for a
            classifier, of its accuracy (`search.measures.find_rise`).
        rise_error: Standard error of the model's part in it, from the number of examples that measure.
        metric: Metric of the task, `accuracy` or `perplexity`.
        recipe: Name of the recipe.
        reason: Why there is no release; None where there is one.
        wall_s: Seconds that it took.
    """

    round: int
    model_sha256: str
    tolerance: float
    version: int | None = None
    manifest: str | None = None
    bytes: int | None = None
    size_ratio: float | None = None
    loss_rise: float | None = None
    rise_error: float | None = None
    metric: str | None = None
    recipe: str | None = None
    reason: str | None = None
    wall_s: float = 0.0

    def to_summary(self) -> dict[str, Any]:
        """Return the field `light` of `summary.json`."""
        return {**asdict(self), "privacy": _POST_PROCESSING}

    def save(self, path: Path) -> None:
        """Write it, as JSON.

        Raises:
            StorageError: The file cannot be written.
        """
        write_atomically(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Read what `save` wrote; None where there is none that can be read."""
        try:
            return cls(**json.loads(read_regular(path, _MAX_BYTES)))
        except (OSError, ValueError, TypeError):
            return None
