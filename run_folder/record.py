"""A finished run as its files tell it: `rounds.jsonl`, `summary.json` and `scenario.toml`, read without trust.

Every optional figure may be absent. `None` means that it was not measured or not written; NaN and the infinities stay
what they are, since a run that diverged has to be seen to have diverged.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from fedglm.core.errors import FedglmError
from fedglm.core.untrusted_files import read_regular

_MAX_BYTES: Final = 256 * 2**20

Metric = Literal["accuracy", "perplexity"]


class ReportError(FedglmError, ValueError):
    """A run folder that cannot be reported on; the message names the file and the remedy."""


@dataclass(frozen=True)
class Score:
    """A model on held-out data: mean loss (nats) and accuracy (0 to 1) or perplexity."""

    loss: float | None = None
    metric: float | None = None


@dataclass(frozen=True)
class Traffic:
    """Bytes as they lie in the messages, and float32 of what is federated for the same nodes."""

    up: int = 0
    down: int = 0
    dense_up: int = 0
    dense_down: int = 0

    @property
    def total(self) -> int:
        """Bytes both ways."""
        return self.up + self.down

    @property
    def dense_total(self) -> int:
        """Dense bytes both ways."""
        return self.dense_up + self.dense_down

    def __add__(self, other: "Traffic") -> "Traffic":
        """The bytes of both."""
        return Traffic(
            self.up + other.up,
            self.down + other.down,
            self.dense_up + other.dense_up,
            self.dense_down + other.dense_down,
        )


@dataclass(frozen=True)
class RoundRecord:
    """One line of `rounds.jsonl`."""

    round: int
    score: Score = Score()
    traffic: Traffic = Traffic()
    sampled: int | None = None
    accepted: int | None = None
    rejected: int | None = None
    epsilon: float | None = None
    wall_s: float | None = None
    virtual_s: float | None = None


@dataclass(frozen=True)
class SiteRecord:
    """One site: what it holds, the federated model on its held-out rows, and a model that it trained alone."""

    name: str
    train: int | None
    held_out: int | None
    units: int | None
    score: Score
    alone: Score | None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run. `summary` keeps whatever else the file says; read it through the typed fields where there is one."""

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
        """Coded bytes over dense bytes, both ways."""
        dense = self.traffic.dense_total
        return self.traffic.total / dense if dense else number(self.summary.get("roundtrip_ratio"))

    @property
    def epsilon(self) -> float | None:
        """The greatest privacy loss over the nodes; None where the run gives no guarantee (an infinite one is none)."""
        return epsilon_of(self.summary)

    def text(self, key: str) -> str | None:
        """A summary field as text, None where it is absent or empty."""
        value = self.summary.get(key)
        return None if value is None or value == "" else str(value)


def epsilon_of(summary: Mapping[str, Any]) -> float | None:
    """The greatest privacy loss over the nodes that a summary tells; None where it is no guarantee."""
    epsilon = number(summary.get("epsilon"))
    return epsilon if epsilon is not None and math.isfinite(epsilon) and epsilon >= 0 else None


def number(value: object) -> float | None:
    """The value where it is a number (NaN and infinities included), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def count(value: object) -> int | None:
    """The value where it is a number of things below 2**63, else None; an integer keeps every digit."""
    found = number(value)
    if found is None or not abs(found) < 2.0**63:
        return None
    return value if isinstance(value, int) else int(found)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _score(value: object, metric: Metric) -> Score | None:
    fields = _mapping(value)
    score = Score(number(fields.get("loss")), number(fields.get(metric)))
    return None if score == Score() else score


def _traffic(fields: Mapping[str, Any]) -> Traffic:
    names = ("uplink_bytes", "downlink_bytes", "dense_uplink_bytes", "dense_downlink_bytes")
    return Traffic(*(max(0, count(fields.get(name)) or 0) for name in names))


def _round(fields: Mapping[str, Any], index: int, metric: Metric) -> RoundRecord:
    position = count(fields.get("round"))
    return RoundRecord(
        round=index if position is None else position,
        score=_score(fields, metric) or Score(),
        traffic=_traffic(fields),
        sampled=count(fields.get("nodes_sampled")),
        accepted=count(fields.get("nodes_accepted")),
        rejected=count(fields.get("nodes_rejected")),
        epsilon=number(fields.get("epsilon")),
        wall_s=number(fields.get("wall_s")),
        virtual_s=number(fields.get("virtual_s")),
    )


def _site(fields: Mapping[str, Any], index: int, metric: Metric) -> SiteRecord:
    return SiteRecord(
        name=str(fields.get("name") or f"site-{index}"),
        train=count(fields.get("train")),
        held_out=count(fields.get("held_out")),
        units=count(fields.get("units")),
        score=_score(fields, metric) or Score(),
        alone=_score(fields.get("alone"), metric),
    )


def _read(path: Path) -> str:
    try:
        return read_regular(path, _MAX_BYTES).decode().replace("\r\n", "\n")
    except FileNotFoundError:
        remedy = "finish the run first (fedglm simulate --resume)"
        raise ReportError(f"{path.parent} holds no {path.name}: {remedy}") from None
    except UnicodeDecodeError:
        raise ReportError(f"{path} is not UTF-8 text: it was not written by fedglm, or is damaged") from None
    except OSError as exc:
        raise ReportError(f"{path} cannot be read: {exc.strerror}") from None


def _object(text: str, where: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{where} is not JSON ({error}): the file is damaged, repeat the run") from None
    if not isinstance(value, dict):
        raise ReportError(f"{where} is not a JSON object: the file is damaged, repeat the run")
    return value


def read_run(folder: Path) -> RunRecord:
    """Reads a run folder.

    Raises:
        ReportError: `summary.json` or `rounds.jsonl` is missing or is not JSON.
    """
    summary = _object(_read(folder / "summary.json"), str(folder / "summary.json"))
    named = summary.get("metric")
    metric: Metric = "perplexity" if named == "perplexity" or (not named and "perplexity" in summary) else "accuracy"
    path = folder / "rounds.jsonl"
    lines = [(at, line) for at, line in enumerate(_read(path).splitlines(), start=1) if line.strip()]
    objects = [_object(line, f"{path}, line {at},") for at, line in lines]
    rounds = tuple(_round(fields, index, metric) for index, fields in enumerate(objects, start=1))
    scenario_path = folder / "scenario.toml"
    scenario_toml = _read(scenario_path) if scenario_path.is_file() else ""
    try:
        settings = tomllib.loads(scenario_toml)
    except (tomllib.TOMLDecodeError, RecursionError):
        settings = {}  # shown as it stands; only the lines that quote single settings go without
    baselines = _mapping(summary.get("baselines"))
    sites = summary.get("sites")
    return RunRecord(
        scenario=str(summary.get("scenario") or "unnamed scenario"),
        metric=metric,
        rounds=rounds,
        final=_score(summary, metric) or (rounds[-1].score if rounds else Score()),
        initial=_score(summary.get("initial"), metric),
        pooled=_score(baselines.get("pooled"), metric),
        alone=_score(baselines.get("alone"), metric),
        traffic=sum((r.traffic for r in rounds), Traffic()) if "uplink_bytes" not in summary else _traffic(summary),
        sites=tuple(_site(_mapping(s), i, metric) for i, s in enumerate(sites if isinstance(sites, list) else [])),
        summary=summary,
        settings=settings,
        scenario_toml=scenario_toml,
    )
