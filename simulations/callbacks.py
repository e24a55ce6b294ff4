"""Who may see a simulation go by."""

from typing import Any


class SimulationCallbacks:
    """Is called at each step of a simulation, from start to end; each method does nothing until a subclass has its own.

    An exception ends the run, which `resume` then takes up again.
    """

    def prepared(self, about: dict[str, Any]) -> None:
        """Data and model are ready; `about` holds what the summary will say of them."""

    def resumed(self, rows: list[dict[str, Any]]) -> None:
        """The run goes on after the rounds in `rows`, which may be none."""

    def round_started(self, server_round: int, sampled: int) -> None:
        """A round begins with `sampled` nodes."""

    def plan_refused(self, node_id: int, reason: str) -> None:
        """A node's policy refuses the plan of the run, which goes on without it."""

    def rejected(self, node_id: int, reason: str) -> None:
        """A node may not take part; the run goes on."""

    def reply_taken(self, server_round: int, node: str, fault: str | None) -> None:
        """A node's reply was folded in, or rejected for `fault`."""

    def round_done(self, rows: list[dict[str, Any]]) -> None:
        """A round has ended and is on disk; `rows` are the lines of `rounds.jsonl` so far."""

    def baseline_started(self, jobs: int) -> None:
        """Training of `jobs` baselines begins."""

    def baseline_done(self) -> None:
        """One is trained and measured."""
