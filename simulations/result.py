"""What a run came to, in Python: its rounds, its summary, its model, and where its files lie."""

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
    """Where the files of a run lie.

    Attributes:
        folder: The run folder; docs/scenarios.md says what it holds.
        report: The page for people; a run by real sites has none.
        model: The released model, which `AutoModelFor...from_pretrained` loads.
    """

    folder: Path
    report: Path
    model: Path


@dataclass(frozen=True, repr=False)
class RunResult:
    """A finished run, as `simulate` returns it and as `open` reads it from its folder.

    Attributes:
        summary: As in `summary.json`: `loss`, `accuracy` or `perplexity`, `uplink_bytes`, `epsilon`, `model_sha256`,
            `sites`, ...; None for a figure that was not measured or is not finite.
        rounds: One dict a round, as in `rounds.jsonl`: `round`, `loss`, `uplink_bytes`, `epsilon`, `wall_s`, ...
        paths: Where its files lie.
    """

    summary: dict[str, Any]
    rounds: list[dict[str, Any]]
    paths: RunPaths

    @classmethod
    def open(cls, folder: str | PathLike[str]) -> Self:
        """Read a finished run from its folder.

        Raises:
            ReportError: `summary.json` or `rounds.jsonl` is missing or is not JSON: the run is not finished, say.
        """
        home = Path(folder)
        return cls(read_summary(home), read_rounds(home), RunPaths(home, home / REPORT, home / MODEL))

    @cached_property
    def model(self) -> "torch.nn.Module":
        """The released model, in evaluation mode; loaded when it is first asked for.

        Raises:
            ModelError: The folder holds none.
        """
        from fedglm.autoglm.models.release import load_release

        return load_release(self.paths.model)[0]

    def to_pandas(self) -> "pandas.DataFrame":
        """The rounds as a data frame, one row a round, its columns the keys of `rounds`.

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
