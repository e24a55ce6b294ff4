"""Names of what lies in a run's folder."""

from typing import Final

RUN, INITIAL, CHECKPOINTS = "run.json", "initial.f32", "checkpoint"
ROUNDS, EVENTS, DONE, FAILED = "rounds.jsonl", "events.jsonl", "done.json", "failed.json"

AUDIT: Final = "audit"
"""Folder, within a run's, of the server's log."""
