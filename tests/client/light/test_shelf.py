"""The light release that a node holds: the newest that its own server signed, whatever is sent to it."""

import shutil

import pytest
from light_federation import unfit, validation_of
from light_releases import FACTS, KEY, make_small_model, read_files, write

from fedglm.client.light.shelf import LightError, LightShelf, UnfitError, hash_manifest
from fedglm.inference.release.archive import pack_release
from fedglm.inference.release.delta import make_delta
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.privacy.keys.signing import SigningKey

pytestmark = pytest.mark.usefixtures("unsynced")


def make_release(folder, version, *, key=KEY):
    """A release with this version in its signed facts; None leaves it out."""
    run = {} if version is None else {"version": version}
    write(folder, model=make_small_model(), key=key, facts=FACTS.model_copy(update={"run": run}))
    return open_release(folder, trust=Trust.unverified())


def list_folder(home):
    return sorted(path.name for path in (home / "light").iterdir())


@pytest.fixture
def shelf(tmp_path):
    return LightShelf(tmp_path / "light", [KEY.public], check=validation_of)


@pytest.fixture
def releases(tmp_path):
    return [make_release(tmp_path / f"release-{version}", version) for version in (1, 2, 3)]


def test_it_begins_empty(shelf):
    assert shelf.find_newest() is None
    assert shelf.open_newest() is None
    assert shelf.describe() == (-1, "")


def test_a_newer_release_takes_the_place_of_the_one_before(shelf, releases, tmp_path):
    for release in releases[:2]:
        shelf.take(pack_release(release), base=None)
        assert shelf.read_validation(hash_manifest(release)) == validation_of(release)
    assert shelf.read_validation(hash_manifest(releases[0])) is None
    assert shelf.describe() == (2, hash_manifest(releases[1]))
    assert read_files(shelf.find_newest()) == read_files(releases[1].folder)
    assert list_folder(tmp_path) == ["0000000002", "validation.json"]


def test_a_release_that_could_not_be_validated_is_kept_and_nothing_is_said_of_it(tmp_path, releases):
    shelf = LightShelf(tmp_path / "light", [KEY.public], check=lambda _: None)
    shelf.take(pack_release(releases[0]), base=None)
    assert shelf.describe() == (1, hash_manifest(releases[0]))
    assert shelf.read_validation(hash_manifest(releases[0])) is None


def test_a_delta_gives_the_same_bytes(shelf, releases):
    shelf.take(pack_release(releases[0]), base=None)
    delta = make_delta(releases[0], releases[2])
    assert len(delta) < len(pack_release(releases[2]))
    shelf.take(delta, base=hash_manifest(releases[0]))
    assert read_files(shelf.find_newest()) == read_files(releases[2].folder)


@pytest.mark.parametrize("version", [1, 2, 0, None])
def test_an_older_or_equal_version_or_none_is_refused(shelf, releases, tmp_path, version):
    shelf.take(pack_release(releases[1]), base=None)
    old = make_release(tmp_path / "old", version)
    with pytest.raises(LightError, match="version"):
        shelf.take(pack_release(old), base=None)
    assert shelf.describe() == (2, hash_manifest(releases[1]))


def test_a_delta_that_goes_back_is_refused(shelf, releases):
    shelf.take(pack_release(releases[2]), base=None)
    with pytest.raises(LightError, match="version 3 is here already"):
        shelf.take(make_delta(releases[2], releases[1]), base=hash_manifest(releases[2]))


def test_only_the_pinned_server_s_releases_are_taken(shelf, tmp_path):
    foreign = make_release(tmp_path / "foreign", 9, key=SigningKey.generate())
    unsigned = make_release(tmp_path / "unsigned", 9, key=None)
    for release in (foreign, unsigned):
        with pytest.raises(LightError, match="signed"):
            shelf.take(pack_release(release), base=None)
    assert shelf.find_newest() is None


@pytest.mark.parametrize("base", [None, "0" * 64])
def test_what_is_no_release_and_a_delta_of_another_base_leave_all_as_it_was(shelf, releases, tmp_path, base):
    shelf.take(pack_release(releases[0]), base=None)
    before = read_files(shelf.find_newest())
    with pytest.raises(LightError):
        shelf.take(b"garbage", base=base)
    assert read_files(shelf.find_newest()) == before
    assert list_folder(tmp_path) == ["0000000001", "validation.json"]


def test_a_release_that_does_not_work_here_is_not_kept(tmp_path, releases):
    checks = [unfit, validation_of]
    shelf = LightShelf(tmp_path / "light", [KEY.public], check=lambda release: checks.pop()(release))
    shelf.take(pack_release(releases[0]), base=None)
    with pytest.raises(UnfitError, match="the one before stays: fast logits: off by 100") as caught:
        shelf.take(pack_release(releases[1]), base=None)
    assert caught.value.validation == unfit(releases[1])
    assert shelf.describe()[0] == 1
    assert list_folder(tmp_path) == ["0000000001", "validation.json"]


def test_what_a_killed_process_left_is_removed_and_never_used(shelf, releases, tmp_path):
    shelf.take(pack_release(releases[0]), base=None)
    for name in (".incoming", "..incoming.abcdefgh"):
        shutil.copytree(releases[2].folder, tmp_path / "light" / name)
    assert shelf.describe()[0] == 1
    shelf.take(pack_release(releases[1]), base=None)
    assert list_folder(tmp_path) == ["0000000002", "validation.json"]


def test_a_damaged_release_is_said_to_be_one_and_replaced_by_a_whole_one_that_is_not_older(shelf, releases):
    shelf.take(pack_release(releases[1]), base=None)
    before = read_files(shelf.find_newest())
    (shelf.find_newest() / "config.json").write_text("{}")
    with pytest.raises(LightError, match=r"damaged|bytes of the manifest"):
        shelf.open_newest()
    assert shelf.describe() == (2, "")  # no delta can be made from it, and nothing older is taken either
    with pytest.raises(LightError, match="version 2 is here already"):
        shelf.take(pack_release(releases[0]), base=None)
    with pytest.raises(LightError, match="damaged"):
        shelf.take(make_delta(releases[1], releases[2]), base=hash_manifest(releases[1]))
    shelf.take(pack_release(releases[1]), base=None)
    assert read_files(shelf.find_newest()) == before
    with pytest.raises(LightError, match="version 2 is here already"):
        shelf.take(pack_release(releases[1]), base=None)
    shelf.take(pack_release(releases[2]), base=None)
    assert shelf.describe() == (3, hash_manifest(releases[2]))
