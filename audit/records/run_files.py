"""The files of a run's folder beside its log, read without trust and checked against each other."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from fedglm.audit.records.light_files import LightFiles, read_light_files
from fedglm.core.untrusted_files import read_regular, read_regular_lines
from fedglm.privacy.errors import PrivacyError
from fedglm.run_folder.names import DONE, LIGHT, ROUNDS, SUMMARY

MAX_ROUNDS_BYTES: Final = 2**30
"""More than the rows of a million rounds take, the most that a run has."""
MAX_RESULT_BYTES: Final = 64 * 2**20

_MAX_ROUNDS: Final = 10**6
_MAX_ROW: Final = 16 * 2**20
"""Bytes of one row, which may name each node that was rejected, and why."""

COUNTS: Final = ("uplink_bytes", "downlink_bytes", "nodes_accepted", "nodes_rejected")
"""Columns of a row that the server's log has, too."""
_SUMMED: Final = ("uplink_bytes", "downlink_bytes", "dense_uplink_bytes", "dense_downlink_bytes")
_SCORES: Final = ("loss", "accuracy", "perplexity")
_TOLERANCE: Final = 1e-4
"""Largest relative difference of a score in the summary from the last row: sums in another order differ."""


class RoundRow(NamedTuple):
    """A line of `rounds.jsonl`: the columns `COUNTS`, and the SHA-256 (hex) of the whole line."""

    counts: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class RunFiles:
    """Content of a run's files.

    Attributes:
        rows: Lines of `rounds.jsonl`, that of round 1 first; None if there is no such file.
        model: SHA-256 (hex) of the resulting model in `summary.json` or `done.json`; None if neither is there.
        results: Names of those two files that are there.
        mismatch: First difference between `summary.json` and `rounds.jsonl`; empty for none.
        is_requested: Whether the verification is about this folder, so that what it lacks is missing; else sites are
            only compared with its log, and the files beside that do not matter.
        light: The light release; None if there is none, or the folder is not to be verified.
        is_bundle: Whether the folder is of a bundle, in which a light release has its manifest and signature alone.
    """

    rows: list[RoundRow] | None
    model: str | None
    results: frozenset[str] = frozenset()
    mismatch: str = ""
    is_requested: bool = False
    light: LightFiles | None = None
    is_bundle: bool = False

    @classmethod
    def read(cls, folder: Path, *, is_requested: bool = False, is_bundle: bool = False) -> "RunFiles":
        """Read the files of a run's folder.

        Args:
            folder: Folder of the run.
            is_requested: See the attribute.
            is_bundle: See the attribute.

        Raises:
            PrivacyError: A file is damaged, or two of them name different models.
        """
        try:
            table = _RoundsTable.read(folder / ROUNDS) if (folder / ROUNDS).exists() else None
            results = {name: _read_result(folder / name) for name in (DONE, SUMMARY) if (folder / name).exists()}
            models = {str(result["model_sha256"]) for result in results.values()}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
            raise PrivacyError(f"a file of the run in {folder} is damaged: {exc}") from exc
        if len(models) > 1:
            raise PrivacyError(f"{DONE} and {SUMMARY} in {folder} show two models")
        mismatch = "" if table is None or SUMMARY not in results else next(table.find_mismatches(results[SUMMARY]), "")
        rows = None if table is None else table.rows
        light = read_light_files(folder / LIGHT) if is_requested else None
        return cls(
            rows, next(iter(models), None), frozenset(results), mismatch, is_requested, light=light, is_bundle=is_bundle
        )


@dataclass
class _RoundsTable:
    """`rounds.jsonl`, read row by row; only hashes, counts and sums are kept."""

    rows: list[RoundRow] = field(default_factory=list)
    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SUMMED, 0))
    epsilons: list[float] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "_RoundsTable":
        """Read the file; raises OSError and ValueError."""
        table = cls()
        for line in read_regular_lines(path, MAX_ROUNDS_BYTES, _MAX_ROW):
            table._add_line(line)
        return table

    def _add_line(self, line: bytes) -> None:
        row = json.loads(line)
        if not isinstance(row, dict) or any(type(row.get(name)) is not int for name in ("round", *COUNTS)):
            raise ValueError(f"a line of {ROUNDS} is none")
        if row["round"] != len(self.rows) + 1 or len(self.rows) >= _MAX_ROUNDS:
            raise ValueError(f"the lines of {ROUNDS} are not those of rounds 1, 2, 3 and so on")
        self.rows.append(RoundRow(tuple(row[name] for name in COUNTS), hashlib.sha256(line).hexdigest()))
        for name in _SUMMED:
            self.sums[name] += row[name] if type(row.get(name)) is int else 0
        if _is_number(row.get("epsilon")):
            self.epsilons = [max([*self.epsilons, row["epsilon"]])]
        self.last = row

    def find_mismatches(self, summary: Mapping[str, Any]) -> Iterator[str]:
        """Yield a description of each difference between a summary and the rows."""
        exact = {"rounds": len(self.rows), **self.sums, "epsilon": next(iter(self.epsilons), None)}
        for name, value in exact.items():
            if name in summary and summary[name] != value:
                yield f"{name} is another in {SUMMARY} than {ROUNDS} has it"
        for name in _SCORES:
            reported, expected = summary.get(name), self.last.get(name)
            if reported is None or expected is None:
                continue
            numbers = _is_number(reported) and _is_number(expected)
            if not numbers or abs(reported - expected) > _TOLERANCE * max(abs(expected), _TOLERANCE):
                yield f"{name} is another in {SUMMARY} than in the last row of {ROUNDS}"


def _read_result(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(read_regular(path, MAX_RESULT_BYTES))
    return result


def _is_number(value: object) -> bool:
    return type(value) in (int, float)
