"""What came of making a model light, as plain values; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedglm.autoglm.light.plan.errors import LightenError

if TYPE_CHECKING:
    from fedglm.inference.model import LiteModel


@dataclass(frozen=True, repr=False)
class LightenResult:
    """What `lighten` returns.

    Attributes:
        record: All figures, as in the JSON file beside the release: `met`, `goals`, `size_ratio`, `loss_rise`, `rows`,
            `frontier`, `nearest`, `files`, `device`, `times`, ...; None for a figure that was not measured.
        folder: Folder of the release; None where nothing meets the goals, and nothing was written.
    """

    record: dict[str, Any]
    folder: Path | None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table: the dense model, its equally trained control, what each means alone gives, and the chosen one."""
        return list(self.record["rows"])

    @property
    def chosen(self) -> dict[str, Any] | None:
        """The row of the model that was released; None where none was."""
        return self.rows[-1] if self.record["met"] else None

    @property
    def frontier(self) -> list[dict[str, Any]]:
        """Candidates that no other beats in both size and loss, the largest first."""
        return list(self.record["frontier"])

    @cached_property
    def model(self) -> LiteModel:
        """The released model, opened for use; loaded at the first access.

        Raises:
            LightenError: Nothing was released.
        """
        from fedglm.inference.model import LiteModel

        if self.folder is None:
            raise LightenError(f"nothing was released, for nothing meets the goals: {self.record['goals']}")
        return LiteModel.from_pretrained(self.folder)

    def __repr__(self) -> str:
        if self.folder is None:
            return f"<LightenResult: nothing meets {self.record['goals']}>"
        return f"<LightenResult {self.record['size_ratio']:.1f}x at {self.record['loss_rise']:+.2%}, in {self.folder}>"
