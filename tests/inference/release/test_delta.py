"""A delta is smaller than the release, leads to the same bits, and fails closed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from light_releases import FACTS, KEY, read_files, trust, write

from fedglm.inference.errors import InferenceError
from fedglm.inference.release.delta import apply_delta, make_delta
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.privacy.keys.signing import SigningKey

pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """A release, one of slightly changed weights, one of others, and one that differs in a fact alone."""
    root = tmp_path_factory.mktemp("releases")
    write(root / "old")
    write(root / "new", changed=0.05)
    write(root / "other", seed=1)
    write(root / "fact", facts=FACTS.model_copy(update={"name": "glm-other-name"}))
    return {path.name: open_release(path, trust=trust()) for path in root.iterdir()}


def total(release):
    return sum(len(content) for content in read_files(release.folder).values())


@pytest.mark.parametrize("name", ["new", "other", "fact", "old"])
def test_the_same_bits_come_out(releases, tmp_path, name):
    delta = make_delta(releases["old"], releases[name])
    made = apply_delta(releases["old"], delta, tmp_path / "made", trust=trust())
    assert read_files(tmp_path / "made") == read_files(releases[name].folder)
    assert open_release(tmp_path / "made", trust=trust()).manifest == made.manifest == releases[name].manifest
    assert len(delta) < total(releases[name])


def test_a_delta_costs_what_has_changed(releases):
    old = releases["old"]
    sizes = {name: len(make_delta(old, releases[name])) for name in ("old", "fact", "new", "other")}
    # 5 % of 6,144 ternary codes are drawn again, and 57 % of those change: 0.25 bits a code make 190 bytes. The rest is
    # the manifest's hashes and signature (200), and twice an index (600), which a large model has no more of.
    assert sizes["old"] < sizes["fact"] < 300 < sizes["new"] < 1500 < 4000 < sizes["other"] < total(releases["other"])


def test_a_wrong_base_is_refused_and_nothing_written(releases, tmp_path):
    delta = make_delta(releases["old"], releases["new"])
    with pytest.raises(InferenceError, match="another release"):
        apply_delta(releases["fact"], delta, tmp_path / "made", trust=trust())
    assert not (tmp_path / "made").exists()


def test_a_foreign_signer_of_the_new_release_is_refused(releases, tmp_path):
    write(tmp_path / "foreign", key=SigningKey.generate(), changed=0.05)
    foreign = open_release(tmp_path / "foreign", trust=Trust.unverified())
    with pytest.raises(InferenceError, match="do not trust"):
        apply_delta(releases["old"], make_delta(releases["old"], foreign), tmp_path / "made", trust=trust())


def test_an_earlier_release_is_replaced(releases, tmp_path):
    write(tmp_path / "here")
    base = open_release(tmp_path / "here", trust=trust())
    apply_delta(base, make_delta(releases["old"], releases["new"]), tmp_path / "here", trust=trust())
    assert read_files(tmp_path / "here") == read_files(releases["new"].folder)


DELTA = []


@given(st.data())
def test_every_mutation_of_a_delta_is_refused(releases, tmp_path_factory, data):
    if not DELTA:
        DELTA.append(make_delta(releases["old"], releases["new"]))
    delta = bytearray(DELTA[0])
    at = data.draw(st.integers(0, len(delta) - 1))
    if data.draw(st.booleans()):
        delta[at] ^= data.draw(st.integers(1, 255))
    else:
        del delta[at : at + data.draw(st.integers(1, 50))]
    target = tmp_path_factory.getbasetemp() / "mutated"
    with pytest.raises(InferenceError):
        apply_delta(releases["old"], bytes(delta), target, trust=trust())
    assert not target.exists()


def test_keys_are_not_in_what_is_written(releases):
    private = KEY._private.private_bytes_raw()
    assert all(private not in content for content in releases["old"].files.values())
    assert "SigningKey(" in repr(KEY)
    assert private.hex() not in repr(KEY)
