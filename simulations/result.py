"""The result of a run in Python: its rounds, its summary, its model, and the paths of its files."""

from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from fedglm.run_folder.names import MODEL, REPORT
from fedglm.run_folder.record import read_rounds, read_summary

if TYPE_CHECKING:
    import pandas
    import torch


class RunPaths(NamedTuple):
    """Paths of a run's files.

    Attributes:
        folder: The run folder; docs/scenarios.md describes its content.
        report: The HTML report; a run of real sites has none.
        model: Folder of the released model, which `AutoModelFor...from_pretrained` loads.
    """

    folder: Path
    report: Path
    model: Path


@dataclass(frozen=True, repr=False)
class RunResult:
    """A finished run, as `simulate` returns it and as `open` reads it from its folder.

    Attributes:
        summary: Content of `summary.json`: `loss`, `accuracy` or `perplexity`, `uplink_bytes`, `epsilon`,
            `model_sha256`, `sites`, ...; None for a figure that was not measured or is not finite.
        rounds: One dict per round, as in `rounds.jsonl`: `round`, `loss`, `uplink_bytes`, `epsilon`, `wall_s`, ...
        paths: Paths of its files.
    """

    summary: dict[str, Any]
    rounds: list[dict[str, Any]]
    paths: RunPaths

    @classmethod
    def open(cls, folder: str | PathLike[str]) -> Self:
        """Read a finished run from its folder.

        Raises:
            ReportError: `summary.json` or `rounds.jsonl` is missing or is not JSON, as in an unfinished run.
        """
        home = Path(folder)
        return cls(read_summary(home), read_rounds(home), RunPaths(home, home / REPORT, home / MODEL))

    @cached_property
    def model(self) -> "torch.nn.Module":
        """The released model, in evaluation mode; loaded at the first access.

        Raises:
            ModelError: The folder holds no model.
        """
        from fedglm.autoglm.models.release import load_release

        return load_release(self.paths.model)[0]

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the rounds as a data frame, one row per round, with the keys of `rounds` as columns.

        Raises:
            ImportError: pandas is not installed; fedglm does not need it otherwise.
        """
        try:
            import pandas
        except ModuleNotFoundError as exc:
            raise ImportError("to_pandas needs pandas, which is not installed: pip install pandas") from exc
        return pandas.DataFrame(self.rounds)

    def __repr__(self) -> str:
        summary = self.summary
        named = f"{summary.get('scenario')}, seed {summary.get('seed')}, {len(self.rounds)} rounds"
        return f"<RunResult {named}, loss {summary.get('loss')}, in {self.paths.folder}>"
