import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save

from fedglm.core.files import StorageError
from fedglm.server.rounds.checkpoint import Checkpoint, CheckpointError, load_latest


def checkpoint(number=3):
    return Checkpoint(
        run="run-1",
        round=number,
        layout="ab" * 32,
        participants={"a": {"acknowledged": number}, "näive/b": {"acknowledged": 0}},
        rows=[
            {"round": i + 1, "loss": 0.5 / (i + 1), "accuracy": None, "rejections": {"a": "late"}}
            for i in range(number)
        ],
        versions={
            "vector": np.arange(6, dtype=np.float16),
            "deltas": np.zeros(0, np.uint8),
            "version": np.array([number], np.int64),
        },
        optimizer={"m": np.linspace(0, 1, 8)[::2], "v": np.ones((2, 3), np.float32).T},
    )


def assert_same(found, saved):
    for field in ("run", "round", "layout", "participants", "rows"):
        assert getattr(found, field) == getattr(saved, field)
    for group in ("versions", "optimizer"):
        arrays, expected = getattr(found, group), getattr(saved, group)
        assert arrays.keys() == expected.keys()
        for name, array in expected.items():
            assert arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(arrays[name], array)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_round_trip(tmp_path):
    checkpoint().save(tmp_path / "a" / "b")
    assert_same(load_latest(tmp_path / "a" / "b"), checkpoint())


def test_a_loss_that_is_not_finite_survives(tmp_path):
    replace(checkpoint(), rows=[{"loss": float("inf")}]).save(tmp_path)
    assert load_latest(tmp_path).rows == [{"loss": float("inf")}]


def test_no_folder_or_an_empty_one_is_none(tmp_path):
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "none") is None


def test_only_the_last_two_are_kept_and_the_newest_is_loaded(tmp_path):
    for number in (8, 9, 10, 11):
        checkpoint(number).save(tmp_path)
    assert names(tmp_path) == ["round-0000010.safetensors", "round-0000011.safetensors"]
    assert load_latest(tmp_path).round == 11


def test_the_same_round_again_replaces_its_file(tmp_path):
    checkpoint(3).save(tmp_path)
    replace(checkpoint(3), run="run-2").save(tmp_path)
    assert load_latest(tmp_path).run == "run-2"
    assert len(names(tmp_path)) == 1


def test_a_run_that_begins_anew_is_not_taken_for_the_older_one(tmp_path):
    """Its round 0 is the newest that was written, whatever an earlier run left there."""
    for number in (8, 9):
        checkpoint(number).save(tmp_path)
    replace(checkpoint(0), run="run-2").save(tmp_path)
    assert load_latest(tmp_path).run == "run-2"


def spoil(path, how):
    content = path.read_bytes()
    path.write_bytes(
        {
            "short": content[:-5],
            "half": content[: len(content) // 2],
            "empty": b"",
            "text": b"x" * 99,
            "one bit": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        }[how]
    )


@pytest.mark.parametrize("how", ["short", "half", "empty", "text", "one bit"])
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path, how):
    for number in (1, 2):
        checkpoint(number).save(tmp_path)
    spoil(tmp_path / "round-0000002.safetensors", how)
    assert_same(load_latest(tmp_path), checkpoint(1))
    checkpoint(2).save(tmp_path)
    assert load_latest(tmp_path).round == 2


def test_all_damaged_is_an_error_that_names_them(tmp_path):
    for number in (1, 2):
        checkpoint(number).save(tmp_path)
        spoil(tmp_path / f"round-000000{number}.safetensors", "half")
    with pytest.raises(CheckpointError) as caught:
        load_latest(tmp_path)
    for part in (str(tmp_path), "round-0000001", "round-0000002", "start in another folder"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({}, None),
        ({}, {"other": "{}"}),
        ({}, {"fedglm": "{"}),
        ({}, {"fedglm": "[]"}),
        ({}, {"fedglm": "{}"}),
        ({"elsewhere/x": np.zeros(1)}, {"fedglm": "{}"}),
        ({}, {"fedglm": json.dumps({"run": "r", "round": 1})}),
    ],
)
def test_a_safetensors_file_that_is_no_checkpoint_is_an_error(tmp_path, tensors, metadata):
    (tmp_path / "round-0000001.safetensors").write_bytes(save(tensors, metadata=metadata))
    with pytest.raises(CheckpointError):
        load_latest(tmp_path)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a checkpoint was unpickled",))


def test_it_never_unpickles(tmp_path, monkeypatch):
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("unpickled"))
    (tmp_path / "round-0000001.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        load_latest(tmp_path)
    checkpoint(2).save(tmp_path)
    assert load_latest(tmp_path).round == 2
    with pytest.raises(Exception, match=r"(?i)object|dtype|type"):
        replace(checkpoint(3), optimizer={"m": np.array([Bomb()], dtype=object)}).save(tmp_path)
    assert load_latest(tmp_path).round == 2


def raiser(exception):
    def fail(*_, **__):
        raise exception

    return fail


def test_a_full_disk_leaves_the_checkpoints_that_stand(tmp_path, monkeypatch):
    checkpoint(1).save(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", raiser(OSError(28, "No space left on device")))
        with pytest.raises(StorageError, match="the disk is full"):
            checkpoint(2).save(tmp_path)
    assert names(tmp_path) == ["round-0000001.safetensors"]
    assert load_latest(tmp_path).round == 1


def test_what_a_killed_server_left_half_written_is_cleared_away(tmp_path):
    (tmp_path / ".round-0000001.safetensors.x1y2").write_bytes(b"half")
    assert load_latest(tmp_path) is None
    checkpoint(1).save(tmp_path)
    assert names(tmp_path) == ["round-0000001.safetensors"]
