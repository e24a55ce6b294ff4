import itertools
import json
import os

import numpy as np
import pytest

from fedglm.client.state.node_state import NodeState, PendingUpdate, StateError
from fedglm.core.files import StorageError

SIZE = 6


def vector(seed):
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


def state_of(seed, *, pending=True):
    return NodeState(
        run=f"run-{seed}",
        version=seed,
        base=vector(seed),
        residual=vector(seed + 100),
        residual_round=seed,
        pending=PendingUpdate(seed + 1, "ab" * 32, "cd" * 16, b"blob" * (seed + 1), vector(seed + 200))
        if pending
        else None,
    )


def words(state):
    """All that a state means, for comparison."""

    def content(array):
        return None if array is None else array.tobytes()

    pending = state.pending
    return (
        state.run,
        state.version,
        content(state.base),
        content(state.residual),
        state.residual_round,
        state.residual_rate,
        pending
        and (
            pending.round,
            pending.base_sha256,
            pending.attempt,
            pending.blob,
            content(pending.residual),
            pending.rate,
        ),
    )


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nothing_on_disk_is_a_fresh_state(tmp_path):
    assert words(NodeState.load(tmp_path / "none", SIZE)) == words(NodeState())


@pytest.mark.parametrize("pending", [True, False])
def test_a_round_trip_through_the_disk(tmp_path, pending):
    state = state_of(3, pending=pending)
    state.save(tmp_path / "a" / "node")
    loaded = NodeState.load(tmp_path / "a" / "node", SIZE)
    assert words(loaded) == words(state)
    before = files_in(tmp_path / "a" / "node")
    loaded.save(tmp_path / "a" / "node")
    assert files_in(tmp_path / "a" / "node") == before


def test_a_state_without_feedback_keeps_no_residual(tmp_path):
    state = NodeState(run="r", version=0, base=vector(0), pending=PendingUpdate(1, "ab", "cd" * 16, b"blob", None))
    state.save(tmp_path)
    loaded = NodeState.load(tmp_path, SIZE)
    assert words(loaded) == words(state)
    loaded.apply_acknowledgement(1, 2)
    assert loaded.residual is None


def test_only_the_newest_vectors_stay(tmp_path):
    for seed in range(4):
        state_of(seed).save(tmp_path)
    assert len(files_in(tmp_path)) == 5
    assert words(NodeState.load(tmp_path, SIZE)) == words(state_of(3))


def test_what_a_killed_node_left_half_written_is_cleared_away(tmp_path):
    state_of(0).save(tmp_path)
    for name in (".base-0.bin.x1y2", ".state.json.x1y2"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "ledger.sqlite").write_bytes(b"another's")
    state_of(1).save(tmp_path)
    assert not [name for name in files_in(tmp_path) if name.startswith(".")]
    assert (tmp_path / "ledger.sqlite").exists()


@pytest.mark.parametrize(("acknowledged", "settled"), [(4, True), (3, False), (5, False), (0, False)])
def test_the_residual_is_committed_for_the_acknowledged_round_alone(acknowledged, settled):
    state = state_of(3)
    old, pending = state.residual, state.pending
    state.apply_acknowledgement(acknowledged, 6)
    assert state.residual is (pending.residual if settled else old)
    assert state.residual_round == (4 if settled else 3)
    assert (state.pending is None) == settled


@pytest.mark.parametrize(("asked", "kept"), [(5, True), (4, False), (1, False)])
def test_a_residual_of_a_round_that_is_still_to_come_is_dropped(asked, kept):
    state = state_of(3)
    state.apply_acknowledgement(4, asked)
    assert (state.residual is not None) == kept
    assert state.residual_round == (4 if kept else 0)


# --- a node that is killed


class Killed(BaseException):
    """The process is gone: no handler of errors runs for it."""


def saves_that_die(monkeypatch, folder, name, exception):
    """Save state 2 over state 1, dying at the i-th call of `os.<name>`, for every i; yields after each death."""
    for index in itertools.count():
        state_of(1).save(folder)
        fresh = state_of(2)
        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing_at(index, getattr(os, name), exception))
            try:
                fresh.save(folder)
            except (Killed, StorageError):
                yield index
            else:
                return


def failing_at(index, real, exception):
    calls = itertools.count()

    def deadly(*args, **kwargs):
        if next(calls) == index:
            raise exception
        return real(*args, **kwargs)

    return deadly


@pytest.mark.parametrize("name", ["replace", "fsync", "unlink"])
def test_a_node_killed_at_any_write_wakes_up_in_the_old_state_or_the_new(tmp_path, monkeypatch, name):
    old, new = words(state_of(1)), words(state_of(2))
    seen = []
    for _ in saves_that_die(monkeypatch, tmp_path, name, Killed()):
        woken = NodeState.load(tmp_path, SIZE)
        assert words(woken) in (old, new)
        seen.append(words(woken) == new)
        state_of(2).save(tmp_path)
        assert words(NodeState.load(tmp_path, SIZE)) == new
        assert len(files_in(tmp_path)) == 5
    assert seen == sorted(seen)  # once the new state is there, it stays
    if name == "replace":
        assert seen == [False] * 5


def test_a_full_disk_leaves_the_old_state(tmp_path, monkeypatch):
    full = OSError(28, "No space left on device")
    for index in saves_that_die(monkeypatch, tmp_path, "replace", full):
        assert words(NodeState.load(tmp_path, SIZE)) == words(state_of(1)), index
        assert not [file for file in files_in(tmp_path) if file.startswith(".")]


# --- a damaged folder


def damaged(folder):
    with pytest.raises(StateError) as caught:
        NodeState.load(folder, SIZE)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_any_flipped_byte_of_a_vector_is_noticed(tmp_path):
    state_of(1).save(tmp_path)
    for path in sorted(tmp_path.glob("*.bin")):
        content = path.read_bytes()
        for spoiled in (content[:-1], content + b"\0", bytes([content[0] ^ 1]) + content[1:], b""):
            path.write_bytes(spoiled)
            assert "move it away to start afresh" in damaged(tmp_path)
        path.unlink()
        assert path.name in damaged(tmp_path)
        path.write_bytes(content)
    assert words(NodeState.load(tmp_path, SIZE)) == words(state_of(1))


def test_a_truncated_index_is_noticed(tmp_path):
    state_of(1).save(tmp_path)
    text = (tmp_path / "state.json").read_bytes()
    for length in range(len(text)):
        (tmp_path / "state.json").write_bytes(text[:length])
        damaged(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"files": []},
        {"files": "base"},
        {"files": {"base": "../../secret.bin"}},
        {"files": {"base": "state.json"}},
        {"files": {"base": 5}},
        {"files": {}},
        {"pending": [1]},
        {"pending": {"round": 1}},
        {"version": "x"},
        {"residual_round": None},
    ],
    ids=str,
)
def test_an_index_that_makes_no_sense_is_noticed(tmp_path, change):
    state_of(1).save(tmp_path)
    path = tmp_path / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    damaged(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "7", '"state"', "{}", "\xff"])
def test_an_index_that_is_something_else_is_noticed(tmp_path, text):
    (tmp_path / "state.json").write_bytes(text.encode("latin-1"))
    damaged(tmp_path)


def test_the_state_of_another_model_is_refused(tmp_path):
    state_of(1).save(tmp_path)
    with pytest.raises(StateError, match="a vector has 6 values, the model has 7"):
        NodeState.load(tmp_path, SIZE + 1)


def test_another_run_starts_afresh_whatever_model_the_last_one_had(tmp_path):
    NodeState(run="a", version=3, base=np.zeros(5, np.float32)).save(tmp_path)
    assert NodeState.load(tmp_path, 5, run="a").version == 3
    fresh = NodeState.load(tmp_path, 9, run="b")
    assert (fresh.run, fresh.version, fresh.base) == ("b", -1, None)
    with pytest.raises(StateError):
        NodeState.load(tmp_path, 9, run="a")
