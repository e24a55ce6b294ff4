import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, chisquare

from fedglm.core.files import StorageError
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.dp.sampling import choose_records, sample_poisson
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.ledger.commitment import compute_commitment, load_salt

# Poisson sampling.


def test_each_unit_comes_with_the_rate_on_its_own():
    noise, units, rate, steps = GaussianNoise(), 200, 0.1, 5000
    taken = np.zeros((steps, units), bool)
    for step in range(steps):
        sample = sample_poisson(noise, units, rate)
        assert sample.dtype == np.int64
        assert (np.diff(sample) > 0).all()
        taken[step, sample] = True
    assert binom.cdf(taken.sum(0).min(), steps, rate) > 1e-8
    assert binom.sf(taken.sum(0).max(), steps, rate) > 1e-8
    # A shuffler's batches are all of one size; a Poisson sample's size varies as a binomial variable does.
    sizes = taken.sum(1)
    assert sizes.var() == pytest.approx(units * rate * (1 - rate), rel=0.15)
    assert abs(np.corrcoef(taken[:, 0], taken[:, 1])[0, 1]) < 6 / np.sqrt(steps)
    assert abs(np.corrcoef(taken[:-1].ravel(), taken[1:].ravel())[0, 1]) < 6 / np.sqrt(taken.size)


def test_a_sample_may_be_empty_or_everybody():
    noise = GaussianNoise()
    assert any(sample_poisson(noise, 3, 0.01).size == 0 for _ in range(50))
    np.testing.assert_array_equal(sample_poisson(noise, 50, 1.0), np.arange(50))
    assert sample_poisson(noise, 0, 0.5).size == 0


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(PrivacyError, match="sampling rate"):
        sample_poisson(GaussianNoise(), 10, rate)


# The records of a unit.


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=30), st.integers(1, 12))
def test_at_most_so_many_records_of_a_unit_in_their_order(records, most):
    records = np.array(records, np.int64)
    chosen = choose_records(GaussianNoise(), records, most)
    assert chosen.size == min(records.size, most)
    places = [records.tolist().index(record) for record in chosen.tolist()]
    assert places == sorted(set(places))


def test_each_set_of_records_is_equally_likely():
    noise = GaussianNoise()
    records = np.arange(5) * 10
    found = {}
    for _ in range(5000):
        chosen = tuple(choose_records(noise, records, 2).tolist())
        found[chosen] = found.get(chosen, 0) + 1
    assert len(found) == 10
    assert chisquare(list(found.values())).pvalue > 1e-6


def test_wrong_bounds_are_refused():
    with pytest.raises(PrivacyError, match="at least 1"):
        choose_records(GaussianNoise(), np.arange(3), 0)
    with pytest.raises(PrivacyError, match="cannot choose 4 of 3"):
        GaussianNoise().choice(3, 4)
    assert GaussianNoise().choice(3, 0).size == 0
    assert GaussianNoise().choice(3, 3).tolist() == [0, 1, 2]


# The commitment to a data set's content.

SALT = bytes(range(32))
RECORDS = [
    (np.array([1, 2, 3], np.uint16), 0, "patient-7"),
    (np.array([4, 5], np.uint16), 1, "patient-7"),
    (np.array([4, 5], np.uint16), 1, "patient-9"),
]


def test_the_order_of_records_does_not_matter_and_all_else_does():
    first = compute_commitment(RECORDS, SALT)
    assert len(first) == 64
    assert compute_commitment(RECORDS[::-1], SALT) == first == compute_commitment(iter(RECORDS), SALT)
    tokens, label, unit = RECORDS[0]
    others = [
        [],
        RECORDS[1:],
        [*RECORDS, RECORDS[0]],
        [(tokens.astype(np.uint32), label, unit), *RECORDS[1:]],
        [(tokens.reshape(1, 3), label, unit), *RECORDS[1:]],
        [(tokens + np.uint16(1), label, unit), *RECORDS[1:]],
        [(tokens, 10, unit), *RECORDS[1:]],
        [(tokens, label, unit.encode()), *RECORDS[1:]],
        [(tokens, str(label), unit), *RECORDS[1:]],
        [(label, tokens, unit), *RECORDS[1:]],
        [(tokens, label), (unit,), *RECORDS[1:]],
    ]
    found = [compute_commitment(records, SALT) for records in others]
    assert len({first, *found}) == len(found) + 1


def test_bounds_between_fields_and_records_count():
    splits = [[("ab", "c")], [("a", "bc")], [("abc",)], [("ab",), ("c",)], [("abc", "")], [("a", "b", "c")]]
    assert len({compute_commitment(records, SALT) for records in splits}) == len(splits)


def test_bytes_in_memory_do_not_matter():
    values = np.arange(12, dtype=np.int32).reshape(3, 4)
    same = [values, np.asfortranarray(values), values.astype(">i4"), np.repeat(values, 2, 0)[::2]]
    assert len({compute_commitment([(array,)], SALT) for array in same}) == 1


def test_without_the_salt_a_guess_cannot_be_confirmed():
    assert len({compute_commitment(RECORDS, salt) for salt in (SALT, bytes(32), os.urandom(32))}) == 3


@pytest.mark.parametrize("salt", [b"", bytes(31), bytes(33)])
def test_a_short_salt_is_refused(salt):
    with pytest.raises(PrivacyError, match="salt"):
        compute_commitment(RECORDS, salt)


@pytest.mark.parametrize("field", [1.5, None, np.array(["a"]), np.array([object()]), ["a"]])
def test_a_field_of_another_kind_is_refused(field):
    with pytest.raises(PrivacyError, match="a field of a record"):
        compute_commitment([(field,)], SALT)


def test_the_site_s_salt_is_made_once_and_for_its_owner_alone(tmp_path):
    path = tmp_path / "keys" / "salt"
    salt = load_salt(path)
    assert len(salt) == 32
    assert load_salt(path) == salt == path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["salt"]
    assert load_salt(tmp_path / "other") != salt


def test_processes_that_make_the_salt_at_once_agree(tmp_path):
    code = "import sys; from pathlib import Path; from fedglm.privacy.ledger.commitment import load_salt\n"
    code += "sys.stdin.read(1); print(load_salt(Path(sys.argv[1])).hex())"
    command = [sys.executable, "-c", code, tmp_path / "salt"]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert len({child.communicate("x")[0] for child in children}) == 1


def test_a_salt_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "salt").write_bytes(b"short")
    with pytest.raises(PrivacyError, match="holds 5 bytes"):
        load_salt(tmp_path / "salt")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        load_salt(tmp_path / "file" / "salt")
