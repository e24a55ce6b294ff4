"""A whole release as bytes for a message: read back as it was, and refused however it is changed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from light_releases import KEY, make_small_model, read_files, trust, write

from fedglm.inference.errors import InferenceError
from fedglm.inference.release.archive import pack_release, unpack_release
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.inference.weights.limits import DEFAULT_LIMITS
from fedglm.privacy.keys.signing import SigningKey

pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive") / "release"
    write(folder, model=make_small_model())
    return folder


@pytest.fixture(scope="module")
def blob(folder):
    return pack_release(open_release(folder, trust=trust()))


def test_it_is_read_back_file_by_file(folder, blob, tmp_path):
    release = unpack_release(blob, tmp_path / "copy", trust=trust())
    assert read_files(tmp_path / "copy") == read_files(folder)
    assert release.signer == KEY.public
    assert release.verified
    assert len(blob) < sum(map(len, read_files(folder).values())) + 100


@given(st.data())
def test_any_changed_byte_is_refused_and_nothing_is_written(blob, tmp_path_factory, data):
    at, change = data.draw(st.integers(0, len(blob) - 1)), data.draw(st.integers(1, 255))
    changed = blob[:at] + bytes([blob[at] ^ change]) + blob[at + 1 :]
    _refuse(changed, tmp_path_factory.mktemp("refused") / "release")


@given(cut=st.integers(1, 10_000), more=st.binary(min_size=1, max_size=20))
def test_a_cut_or_a_longer_one_is_refused(blob, tmp_path_factory, cut, more):
    folder = tmp_path_factory.mktemp("refused") / "release"
    _refuse(blob[: -min(cut, len(blob))], folder)
    _refuse(blob + more, folder)


def test_a_foreign_signer_and_one_beyond_the_limits_are_refused(blob, tmp_path):
    with pytest.raises(InferenceError, match="signed by"):
        unpack_release(blob, tmp_path / "r", trust=Trust.in_keys([SigningKey.generate().public]))
    small = type(DEFAULT_LIMITS)(**{**vars(DEFAULT_LIMITS), "max_bytes": len(blob) - 1})
    with pytest.raises(InferenceError, match="bytes"):
        unpack_release(blob, tmp_path / "r", trust=trust(), limits=small)
    assert list(tmp_path.iterdir()) == []


def _refuse(blob, folder):
    with pytest.raises(InferenceError):
        unpack_release(blob, folder, trust=trust())
    assert not folder.exists()
