"""The releases that a project keeps for its sites: the newest is by version, and nothing foreign is among them."""

import os
import shutil

import pytest
from light_releases import FACTS, KEY, make_small_model, read_files, write

from fedglm.client.light.shelf import hash_manifest
from fedglm.inference.errors import InferenceError
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.privacy.keys.signing import SigningKey
from fedglm.server.deployment.light_store import LightStore
from fedglm.server.run_setup import KeptRelease

pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture
def store(tmp_path):
    return LightStore(tmp_path / "state", KEY.public, tmp_path / "run")


def release(tmp_path, version, *, key=KEY):
    """Write the run's release, and return what it is."""
    facts = FACTS.model_copy(update={"run": {"version": version}})
    write(tmp_path / "run" / "light", model=make_small_model(), key=key, facts=facts)
    made = open_release(tmp_path / "run" / "light", trust=Trust.unverified())
    return KeptRelease(version=version, manifest=hash_manifest(made))


def test_the_newest_is_that_with_the_greatest_version_and_the_last_four_are_kept(store, tmp_path):
    assert store.find_newest() is None
    for version in (1, 2, 3, 4, 5):
        made = release(tmp_path, version)
        store.keep(made)
        assert store.find_newest() == made
    folder = tmp_path / "state" / "light"
    for path in folder.iterdir():  # as after a copy of the folder
        os.utime(path, (10, 10) if path.name == made.manifest else None)
    (folder / ".killed.abc").mkdir()
    newer = release(tmp_path, 6)
    store.keep(newer)
    kept = {open_release(path, trust=Trust.in_keys([KEY.public])).manifest.version for path in folder.iterdir()}
    assert kept == {3, 4, 5, 6}
    assert store.find_newest() == newer


def test_another_release_than_is_named_is_not_kept(store, tmp_path):
    made = release(tmp_path, 1)
    for other in (made._replace(version=2), made._replace(manifest="0" * 64)):
        with pytest.raises(InferenceError, match="holds another release than version"):
            store.keep(other)
    release(tmp_path, 1, key=SigningKey.generate())
    with pytest.raises(InferenceError, match="signed by"):
        store.keep(made)
    assert store.find_newest() is None


@pytest.mark.parametrize("how", ["foreign", "damaged", "renamed", "unsigned"])
def test_what_is_not_this_server_s_is_not_offered(store, tmp_path, how):
    first = release(tmp_path, 1)
    store.keep(first)
    key = {"foreign": SigningKey.generate(), "unsigned": None}.get(how, KEY)
    other = release(tmp_path, 9, key=key)
    place = tmp_path / "state" / "light" / ("f" * 64 if how == "renamed" else other.manifest)
    shutil.copytree(tmp_path / "run" / "light", place)
    if how == "damaged":
        (place / "manifest.json").write_text("{}")
    assert store.find_newest() == first


def test_a_damaged_base_gives_the_whole_and_a_damaged_release_nothing(store, tmp_path):
    first, second = release(tmp_path, 1), None
    store.keep(first)
    second = release(tmp_path, 2)
    store.keep(second)
    delta, base = store.pack(second.manifest, first.manifest)
    assert base == first.manifest
    (tmp_path / "state" / "light" / first.manifest / "config.json").write_text("{}")
    whole, base = store.pack(second.manifest, first.manifest)
    assert base is None
    assert len(whole) > len(delta)
    (tmp_path / "state" / "light" / second.manifest / "config.json").write_text("{}")
    with pytest.raises(InferenceError):
        store.pack(second.manifest, "")
    assert "config.json" in read_files(tmp_path / "run" / "light")


def test_each_site_s_last_word_on_a_release_is_a_file_of_its_own(store, tmp_path):
    for site, version, content in (("a", 1, b"x"), ("b", 1, b"y"), ("a", 12, b"z"), ("a", 1, b"again")):
        store.record_validation(site, version, content)
    folder = tmp_path / "run" / "light-validations"
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/*.json")}
    assert found == {"0000000001/a.json": b"again", "0000000001/b.json": b"y", "0000000012/a.json": b"z"}
