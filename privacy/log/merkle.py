"""Merkle trees over the entries of a log, as in certificate transparency (RFC 6962, section 2.1).

A leaf is the SHA-256 of a zero byte and the entry, a node that of a one byte and the two hashes below it; of n leaves
the left subtree has the largest power of two below n. The root of a tree of n leaves commits to all of them:

    inclusion     an entry is the i-th of the n entries of a root, proved by about log2(n) hashes
    consistency   the first m of the n entries of a root are the entries of an older root

Hashes are 32 bytes.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Final

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
"""Root of no entries."""


def hash_leaf(entry: bytes) -> bytes:
    """Return the leaf hash of an entry."""
    return hashlib.sha256(b"\0" + entry).digest()


def hash_node(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node from those of its two subtrees."""
    return hashlib.sha256(b"\1" + left + right).digest()


class Frontier:
    """An append-only tree that keeps only the roots of its complete subtrees, at most one for each bit of its size.

    Attributes:
        size: Number of leaves.
    """

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []  # roots of the complete subtrees, one for each set bit of `size`, largest first

    def copy(self) -> "Frontier":
        """Return an independent copy."""
        other = Frontier()
        other.size, other._peaks = self.size, list(self._peaks)
        return other

    def append(self, leaf: bytes) -> None:
        """Append the hash of a leaf."""
        size, peaks = self.size, self._peaks
        while size & 1:
            leaf = hash_node(peaks.pop(), leaf)
            size >>= 1
        peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """Compute the root over all leaves so far."""
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1]
        for peak in self._peaks[-2::-1]:
            root = hash_node(peak, root)
        return root


class Tree:
    """A tree of known leaves with all its nodes: the root over its first leaves, however many, takes a few hashes.

    Args:
        leaves: Hashes of the leaves.
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels = [leaves]
        while len(level := self._levels[-1]) > 1:
            self._levels.append([hash_node(*pair) for pair in zip(level[::2], level[1::2], strict=False)])

    def root(self, size: int) -> bytes:
        """Compute the root over the first `size` leaves.

        Raises:
            IndexError: The tree has fewer leaves.
        """
        if not 0 <= size <= len(self._levels[0]):
            raise IndexError(f"the first {size} of {len(self._levels[0])} leaves")
        # Each set bit of the size is a complete subtree, the smallest at the right.
        peaks = [level[(size >> height) - 1] for height, level in enumerate(self._levels) if size >> height & 1]
        return reduce(lambda right, left: hash_node(left, right), peaks) if peaks else EMPTY_ROOT


def compute_root(leaves: Iterable[bytes]) -> bytes:
    """Compute the root over the hashes of leaves."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()


def make_inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Make the proof that leaf `index` (from 0) is in the tree of `leaves`: the audit path of section 2.1.1.

    Returns:
        Hashes of the path, the lowest first.

    Raises:
        IndexError: There is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of {len(leaves)}")
    low, high, path = 0, len(leaves), []
    while high - low > 1:
        middle = low + _split_size(high - low)
        if index < middle:
            path.append(compute_root(leaves[middle:high]))
            high = middle
        else:
            path.append(compute_root(leaves[low:middle]))
            low = middle
    return path[::-1]


def compute_root_by_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    """Compute the root of the tree of `size` leaves in which `proof` includes the leaf; None for a wrong length."""
    if not 0 <= index < size:
        return None
    low, high, left = 0, size, []
    while high - low > 1:
        middle = low + _split_size(high - low)
        left.append(index >= middle)
        low, high = (middle, high) if index >= middle else (low, middle)
    if len(proof) != len(left):
        return None
    root = leaf
    for is_left, other in zip(reversed(left), proof, strict=True):
        root = hash_node(other, root) if is_left else hash_node(root, other)
    return root


def make_consistency_proof(leaves: Sequence[bytes], size: int) -> list[bytes]:
    """Make the proof that the tree of the first `size` leaves is a prefix of the tree of all: section 2.1.2.

    Raises:
        IndexError: `size` is not from 1 to the number of leaves.
    """
    if not 1 <= size <= len(leaves):
        raise IndexError(f"the first {size} of {len(leaves)} leaves")
    low, high, known, path = 0, len(leaves), True, []
    while size < high:
        middle = low + _split_size(high - low)
        if size <= middle:
            path.append(compute_root(leaves[middle:high]))
            high = middle
        else:
            path.append(compute_root(leaves[low:middle]))
            low, known = middle, False
    if not known:
        path.append(compute_root(leaves[low:high]))
    return path[::-1]


def is_consistent(old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Return whether `proof` shows that the tree of `old_size` leaves is a prefix of that of `size` leaves.

    This is the verification of RFC 9162, section 2.1.4.2.
    """
    if not 0 < old_size <= size:
        return False
    if old_size == size:
        return not proof and old_root == root
    hashes = list(proof)
    if old_size & (old_size - 1) == 0:
        hashes.insert(0, old_root)
    if not hashes:
        return False
    first, last = old_size - 1, size - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    old = new = hashes[0]
    for other in hashes[1:]:
        if last == 0:
            return False
        if first & 1 or first == last:
            old, new = hash_node(other, old), hash_node(other, new)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            new = hash_node(new, other)
        first, last = first >> 1, last >> 1
    return last == 0 and old == old_root and new == root


def _split_size(count: int) -> int:
    """Return the largest power of two below `count`, which is at least 2."""
    return 1 << (count - 1).bit_length() - 1
