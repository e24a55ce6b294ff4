"""A finished run, read from `rounds.jsonl`, `summary.json` and `scenario.toml`, none of which is trusted.

Every optional figure may be absent. `None` means that it was not measured or not written; NaN and infinities are kept,
so that a run that diverged is shown as one.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from fedglm.core.errors import FedglmError
from fedglm.core.untrusted_files import read_regular
from fedglm.run_folder.names import ROUNDS, SCENARIO, SUMMARY
from fedglm.run_folder.traffic import Traffic

_MAX_BYTES: Final = 256 * 2**20

DEPLOYMENT: Final = "deployment"
"""`engine` in the summary of a deployed run; a simulation has the name of its own."""

Metric = Literal["accuracy", "perplexity"]


class ReportError(FedglmError, ValueError):
    """A run folder that no report can be made of; the message names the file and the remedy."""


@dataclass(frozen=True)
class Score:
    """Result of a model on held-out data.

    Attributes:
        loss: Mean loss in nats.
        metric: Accuracy (0 to 1) or perplexity, by the run's metric.
    """

    loss: float | None = None
    metric: float | None = None


@dataclass(frozen=True)
class RoundRecord:
    """One line of `rounds.jsonl`; `absent` counts sites that gave no update as they were not connected, or revoked."""

    round: int
    score: Score = Score()
    traffic: Traffic = field(default_factory=Traffic)
    sampled: int | None = None
    accepted: int | None = None
    rejected: int | None = None
    absent: int = 0
    epsilon: float | None = None
    wall_s: float | None = None
    virtual_s: float | None = None


@dataclass(frozen=True)
class SiteRecord:
    """One site.

    Attributes:
        name: Name of the site.
        train: Number of its training rows.
        held_out: Number of its held-out rows.
        units: Number of its privacy units.
        score: The federated model on its held-out rows.
        alone: A model trained on this site's data alone, on the same rows; None where none was trained.
    """

    name: str
    train: int | None
    held_out: int | None
    units: int | None
    score: Score
    alone: Score | None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A finished run.

    Attributes:
        scenario: Name of the scenario.
        metric: Name of the measure in `Score.metric`.
        rounds: All rounds, in order.
        final: The federated model after the last round.
        initial: The model before training.
        pooled: A model trained on all data in one place.
        alone: Models trained at one site each, on average.
        traffic: Bytes of all rounds.
        sites: Results by site.
        summary: All fields of `summary.json`; prefer the typed fields where there is one.
        settings: The scenario's settings; empty where the file is missing or is not TOML.
        scenario_toml: Text of `scenario.toml`; empty where it is missing.
    """

    scenario: str
    metric: Metric
    rounds: tuple[RoundRecord, ...]
    final: Score
    initial: Score | None
    pooled: Score | None
    alone: Score | None
    traffic: Traffic
    sites: tuple[SiteRecord, ...]
    summary: Mapping[str, Any]
    settings: Mapping[str, Any]
    scenario_toml: str

    @property
    def ratio(self) -> float | None:
        """Coded bytes over dense bytes, both ways; the summary's own ratio where no dense bytes were recorded."""
        ratio = self.traffic.ratio
        return ratio if ratio is not None else number(self.summary.get("roundtrip_ratio"))

    @property
    def epsilon(self) -> float | None:
        """Largest privacy loss over the nodes; None where the run gives no guarantee (an infinite epsilon is none)."""
        return epsilon_of(self.summary)

    @property
    def is_deployed(self) -> bool:
        """Whether real sites took part, whose records and ledgers are not on the server."""
        return self.summary.get("engine") == DEPLOYMENT

    @property
    def is_measured(self) -> bool:
        """Whether the model was evaluated, though perhaps to no finite result."""
        return not self.is_deployed or "loss" in self.summary

    @property
    def epsilon_limit(self) -> float | None:
        """Epsilon that no site's ledger exceeds, where what they spent is known to the sites alone; else None."""
        limit = number(self.summary.get("epsilon_at_most"))
        return limit if self.epsilon is None and limit is not None and math.isfinite(limit) and limit >= 0 else None

    def text(self, key: str) -> str | None:
        """Return a summary field as text; None where it is absent or empty."""
        value = self.summary.get(key)
        return None if value is None or value == "" else str(value)


def epsilon_of(summary: Mapping[str, Any]) -> float | None:
    """Return the largest privacy loss over the nodes in a summary; None where it is not a guarantee."""
    epsilon = number(summary.get("epsilon"))
    return epsilon if epsilon is not None and math.isfinite(epsilon) and epsilon >= 0 else None


def number(value: object) -> float | None:
    """Return the value as a float if it is a number (NaN and infinities included), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def count(value: object) -> int | None:
    """Return the value as an integer if it is a number below 2**63 in magnitude, else None; integers stay exact."""
    as_float = number(value)
    if as_float is None or not abs(as_float) < 2.0**63:
        return None
    return value if isinstance(value, int) else int(as_float)


def _as_mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _parse_score(value: object, metric: Metric) -> Score | None:
    fields = _as_mapping(value)
    score = Score(number(fields.get("loss")), number(fields.get(metric)))
    return None if score == Score() else score


def _parse_traffic(fields: Mapping[str, Any]) -> Traffic:
    names = ("uplink_bytes", "downlink_bytes", "dense_uplink_bytes", "dense_downlink_bytes")
    return Traffic(*(max(0, count(fields.get(name)) or 0) for name in names))


def _parse_round(fields: Mapping[str, Any], index: int, metric: Metric) -> RoundRecord:
    position = count(fields.get("round"))
    return RoundRecord(
        round=index if position is None else position,
        score=_parse_score(fields, metric) or Score(),
        traffic=_parse_traffic(fields),
        sampled=count(fields.get("nodes_sampled")),
        accepted=count(fields.get("nodes_accepted")),
        rejected=count(fields.get("nodes_rejected")),
        absent=sum(len(names) for key in ("absent", "revoked") if isinstance(names := fields.get(key), list)),
        epsilon=number(fields.get("epsilon")),
        wall_s=number(fields.get("wall_s")),
        virtual_s=number(fields.get("virtual_s")),
    )


def _parse_site(fields: Mapping[str, Any], index: int, metric: Metric) -> SiteRecord:
    return SiteRecord(
        name=str(fields.get("name") or f"site-{index}"),
        train=count(fields.get("train")),
        held_out=count(fields.get("held_out")),
        units=count(fields.get("units")),
        score=_parse_score(fields, metric) or Score(),
        alone=_parse_score(fields.get("alone"), metric),
    )


def _read_text(path: Path) -> str:
    try:
        return read_regular(path, _MAX_BYTES).decode().replace("\r\n", "\n")
    except FileNotFoundError:
        remedy = "finish the run first (fedglm simulate or fedglm run, with --resume)"
        raise ReportError(f"{path.parent} holds no {path.name}: {remedy}") from None
    except UnicodeDecodeError:
        raise ReportError(f"{path} is not UTF-8 text: it was not written by fedglm, or is damaged") from None
    except OSError as exc:
        raise ReportError(f"{path} cannot be read: {exc.strerror}") from None


def _parse_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{where} is not JSON ({error}): the file is damaged, repeat the run") from None
    if not isinstance(value, dict):
        raise ReportError(f"{where} is not a JSON object: the file is damaged, repeat the run")
    return value


def read_summary(folder: Path) -> dict[str, Any]:
    """Read `summary.json` as it stands.

    Raises:
        ReportError: It is missing or is not JSON.
    """
    return _parse_object(_read_text(folder / SUMMARY), str(folder / SUMMARY))


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of `rounds.jsonl` as they stand.

    Raises:
        ReportError: It is missing, or a line is not JSON.
    """
    path = folder / ROUNDS
    lines = [(at, line) for at, line in enumerate(_read_text(path).splitlines(), start=1) if line.strip()]
    return [_parse_object(line, f"{path}, line {at},") for at, line in lines]


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        ReportError: `summary.json` or `rounds.jsonl` is missing or is not JSON.
    """
    summary = read_summary(folder)
    name = summary.get("metric")
    metric: Metric = "perplexity" if name == "perplexity" or (not name and "perplexity" in summary) else "accuracy"
    rounds = tuple(_parse_round(fields, index, metric) for index, fields in enumerate(read_rounds(folder), start=1))
    scenario_path = folder / SCENARIO
    scenario_toml = _read_text(scenario_path) if scenario_path.is_file() else ""
    try:
        settings = tomllib.loads(scenario_toml)
    except (tomllib.TOMLDecodeError, RecursionError):
        settings = {}  # the report shows the text as it is, and leaves out the lines that quote single settings
    baselines = _as_mapping(summary.get("baselines"))
    sites = summary.get("sites")
    return RunRecord(
        scenario=str(summary.get("scenario") or "unnamed scenario"),
        metric=metric,
        rounds=rounds,
        final=_parse_score(summary, metric) or (rounds[-1].score if rounds else Score()),
        initial=_parse_score(summary.get("initial"), metric),
        pooled=_parse_score(baselines.get("pooled"), metric),
        alone=_parse_score(baselines.get("alone"), metric),
        traffic=_parse_traffic(summary) if "uplink_bytes" in summary else sum((r.traffic for r in rounds), Traffic()),
        sites=tuple(
            _parse_site(_as_mapping(s), i, metric) for i, s in enumerate(sites if isinstance(sites, list) else [])
        ),
        summary=summary,
        settings=settings,
        scenario_toml=scenario_toml,
    )
