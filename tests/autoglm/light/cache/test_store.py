"""The store of trials: whole or absent, bounded, private, and never trusted beyond its hashes."""

import json
import math
import os
import stat

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedglm.autoglm.light.cache.store import Entry, Store, default_folder
from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.core.files import StorageError

pytestmark = pytest.mark.usefixtures("unsynced")

ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)
ENTRY = Entry(facts={"z": 1.5, "a": [0.1, math.inf], "order": "kept"}, weights=b"weights" * 10)


@pytest.fixture
def said():
    return []


@pytest.fixture
def store(tmp_path, said):
    return Store(tmp_path / "cache", warn=said.append)


def same(one, other):
    return json.dumps(one.facts) == json.dumps(other.facts) and one.weights == other.weights


def use_at(store, key, second):
    os.utime(store.folder / f"{key}.json", (second, second))


def test_what_is_kept_comes_back_to_the_bit(store):
    store.save(ONE, ENTRY)
    store.save(TWO, Entry(facts={"quality": 1}))
    assert same(store.load(ONE), ENTRY)
    assert store.load(TWO).weights is None
    assert store.load(THREE) is None


def test_nobody_else_can_read_it(store):
    store.save(ONE, ENTRY)
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in store.folder.iterdir()} == {0o600}


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_that_others_write_to_is_refused(tmp_path, mode):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(mode)
    with pytest.raises(LightenError, match="--no-cache"):
        Store(tmp_path / "shared")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_is_found_dropped_and_said(store, said, data):
    """In either file; bytes that only change how the JSON is spaced do not occur in what is written."""
    said.clear()
    store.save(ONE, ENTRY)
    path = store.folder / f"{ONE}{data.draw(st.sampled_from(['.json', '.safetensors']))}"
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    found = store.load(ONE)
    if found is None:
        assert len(said) == 1
        assert "dropped" in said[0]
        assert not list(store.folder.glob(f"{ONE}*"))
    else:  # such as another kind of white space between two values
        assert same(found, ENTRY)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff" * 9, b"[" * 100_000])
def test_cut_off_or_other_files_are_no_entry(store, said, suffix, content):
    store.save(ONE, ENTRY)
    (store.folder / f"{ONE}{suffix}").write_bytes(content)
    assert store.load(ONE) is None
    assert len(said) == 1
    assert store.load(ONE) is None
    assert len(said) == 1


def test_a_longer_file_of_weights_is_not_read(store, said):
    store.save(ONE, ENTRY)
    with (store.folder / f"{ONE}.safetensors").open("ab") as file:
        file.truncate(1 << 40)
    assert store.load(ONE) is None
    assert "longer" in said[0]


def test_facts_without_their_weights_are_no_entry(store, said):
    store.save(ONE, ENTRY)
    (store.folder / f"{ONE}.safetensors").unlink()
    assert store.load(ONE) is None
    assert "missing" in said[0]


def test_the_least_recently_used_go_first(tmp_path):
    one = Entry(facts={}, weights=b"x" * 3000)
    store = Store(tmp_path, max_bytes=8000)
    store.save(ONE, one)
    store.save(TWO, one)
    use_at(store, ONE, 100)
    use_at(store, TWO, 200)
    assert store.load(ONE) is not None  # used now, and so after TWO
    store.save(THREE, one)
    assert store.load(TWO) is None
    assert store.load(ONE) is not None
    assert store.load(THREE) is not None
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 8000


def test_what_is_larger_than_the_bound_is_not_kept_and_evicts_nothing(tmp_path, said):
    store = Store(tmp_path, max_bytes=2000, warn=said.append)
    store.save(ONE, ENTRY)
    store.save(TWO, Entry(facts={}, weights=b"x" * 3000))
    assert store.load(TWO) is None
    assert store.load(ONE) is not None
    assert "larger" in said[0]


def test_what_a_kill_leaves_behind_is_cleared_and_other_files_stay(store):
    for name in (f"{ONE}.safetensors", f".{TWO}.json.ab12", "notes.txt"):
        (store.folder / name).write_bytes(b"half")
    store.save(THREE, ENTRY)
    names = {path.name for path in store.folder.iterdir()}
    assert names == {"notes.txt", "lock", f"{THREE}.json", f"{THREE}.safetensors"}


def test_what_cannot_be_written_is_said_and_ends_nothing(store, said, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    store.save(ONE, ENTRY)
    assert "was not kept" in said[0]
    monkeypatch.undo()
    assert store.load(ONE) is None


def test_the_users_own_folder_follows_xdg(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "fedglm" / "light"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, by the specification
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "fedglm" / "light"


def test_a_user_without_a_home_is_told(monkeypatch):
    def home():
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", home)
    with pytest.raises(StorageError, match="--cache"):
        default_folder()
