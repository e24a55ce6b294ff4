"""Logs that are rotated beneath those who write them."""

import os

from fedglm.core.log_rotation import rotate_log


def test_a_long_log_is_put_aside_for_its_owner_and_its_writer_goes_on(tmp_path):
    log, previous = tmp_path / "node.log", tmp_path / "node.log.1"
    previous.write_text("of the day before")
    previous.chmod(0o644)
    with log.open("ab", buffering=0) as writer:
        writer.write(b"x" * 100)
        rotate_log(log, 100)
        assert (log.stat().st_size, previous.read_text()) == (100, "of the day before")
        writer.write(b"y")
        rotate_log(log, 100)
        writer.write(b"z")
    assert log.read_bytes() == b"z"
    assert previous.read_bytes() == b"x" * 100 + b"y"
    assert previous.stat().st_mode & 0o777 == 0o600


def test_without_a_log_or_a_place_for_the_old_one_nothing_happens(tmp_path):
    rotate_log(tmp_path / "node.log", 1)
    assert os.listdir(tmp_path) == []
    (tmp_path / "node.log").write_bytes(b"long")
    (tmp_path / "node.log.1").mkdir()
    rotate_log(tmp_path / "node.log", 1)
    assert (tmp_path / "node.log").read_bytes() == b"long"
