"""Callbacks of a simulation."""

from typing import Any


class SimulationCallbacks:
    """Callbacks at each step of a simulation; each method does nothing unless a subclass overrides it.

    An exception ends the run, which `resume` can continue.
    """

    def prepared(self, about: dict[str, Any]) -> None:
        """Data and model are ready; `about` holds the summary's fields that are known before the first round."""

    def resumed(self, rows: list[dict[str, Any]]) -> None:
        """The run continues after the rounds in `rows`, possibly none."""

    def round_started(self, server_round: int, sampled: int) -> None:
        """A round begins with `sampled` nodes."""

    def plan_refused(self, node_id: int, reason: str) -> None:
        """A node's policy refuses the plan of the run, which continues without it."""

    def rejected(self, node_id: int, reason: str) -> None:
        """A node is rejected; the run continues without it."""

    def reply_taken(self, server_round: int, node: str, fault: str | None) -> None:
        """A node's reply was aggregated (`fault` is None), or rejected for `fault`."""

    def round_done(self, rows: list[dict[str, Any]]) -> None:
        """A round has ended and is on disk; `rows` are the lines of `rounds.jsonl` so far."""

    def baseline_started(self, jobs: int) -> None:
        """Training of `jobs` baselines begins."""

    def baseline_done(self) -> None:
        """A baseline is trained and evaluated."""
