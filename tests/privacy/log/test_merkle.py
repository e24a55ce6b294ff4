"""Merkle trees: the roots of RFC 6962 by its own recursive definition, and proofs that prove and do not else."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.privacy.log.merkle import (
    EMPTY_ROOT,
    Frontier,
    Tree,
    compute_root,
    compute_root_by_inclusion,
    hash_leaf,
    is_consistent,
    make_consistency_proof,
    make_inclusion_proof,
)

LEAVES = [hash_leaf(b"%d" % number) for number in range(70)]
SIZES = st.integers(1, len(LEAVES))


def by_definition(leaves):
    """MTH of section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\1" + by_definition(leaves[:split]) + by_definition(leaves[split:])).digest()


def test_known_roots():
    """Test vectors of certificate transparency's reference implementation (merkle_tree_test.cc)."""
    entries = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    roots = {
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    leaves = [hash_leaf(bytes.fromhex(entry)) for entry in entries]
    for size, root in roots.items():
        assert compute_root(leaves[:size]).hex() == root
    assert compute_root([]) == EMPTY_ROOT


def test_the_root_of_every_size_is_that_of_the_definition():
    frontier = Frontier()
    for size, leaf in enumerate(LEAVES, 1):
        frontier.append(leaf)
        assert (frontier.size, frontier.root()) == (size, by_definition(LEAVES[:size]))


@given(whole=st.integers(0, len(LEAVES)), data=st.data())
def test_a_whole_tree_knows_the_root_of_every_beginning(whole, data):
    tree, size = Tree(LEAVES[:whole]), data.draw(st.integers(0, whole))
    assert tree.root(size) == by_definition(LEAVES[:size])
    with pytest.raises(IndexError):
        tree.root(whole + 1)


@given(size=SIZES, data=st.data())
def test_a_leaf_is_proved_where_it_stands_and_nowhere_else(size, data):
    index = data.draw(st.integers(0, size - 1))
    proof, root = make_inclusion_proof(LEAVES[:size], index), compute_root(LEAVES[:size])
    assert len(proof) <= (size - 1).bit_length()
    assert compute_root_by_inclusion(LEAVES[index], index, size, proof) == root
    other = data.draw(st.integers(0, len(LEAVES)).filter(lambda place: place != index))
    assert compute_root_by_inclusion(LEAVES[index], other, size, proof) != root
    assert compute_root_by_inclusion(hash_leaf(b"other"), index, size, proof) != root
    assert compute_root_by_inclusion(LEAVES[index], index, size, [*proof, root]) is None
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        forged = [hash_leaf(b"forged") if place == at else part for place, part in enumerate(proof)]
        assert compute_root_by_inclusion(LEAVES[index], index, size, forged) != root


@given(size=SIZES, data=st.data())
def test_an_older_tree_is_proved_to_be_the_beginning_of_a_newer_one(size, data):
    old = data.draw(st.integers(1, size))
    old_root, root = compute_root(LEAVES[:old]), compute_root(LEAVES[:size])
    proof = make_consistency_proof(LEAVES[:size], old)
    assert is_consistent(old, old_root, size, root, proof)
    rewritten = [hash_leaf(b"rewritten"), *LEAVES[1:old]]
    assert not is_consistent(old, compute_root(rewritten), size, root, proof)
    assert not is_consistent(old, old_root, size, compute_root([*LEAVES[: size - 1], hash_leaf(b"x")]), proof)
    assert not is_consistent(old, old_root, size, root, [*proof, root])
    assert not is_consistent(0, EMPTY_ROOT, size, root, proof)
    assert not is_consistent(size + 1, old_root, size, root, proof)
    if proof:
        assert not is_consistent(old, old_root, size, root, proof[:-1])


def test_no_proof_of_what_is_not_there():
    for index in (-1, 3):
        with pytest.raises(IndexError):
            make_inclusion_proof(LEAVES[:3], index)
        with pytest.raises(IndexError):
            make_consistency_proof(LEAVES[:3], 4 if index == 3 else 0)
