"""Merkle trees over the entries of a log, as certificate transparency has them (RFC 6962, section 2.1).

A leaf is the SHA-256 of a zero byte and the entry, a node that of a one byte and the two hashes below it; of n leaves
the left subtree holds the largest power of two below n. The root of a tree of n leaves commits to all of them:

    inclusion     an entry is the i-th of the n behind a root, by about log2(n) hashes
    consistency   the first m of the n entries behind a root are those behind an older root

Hashes are 32 bytes.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Final

EMPTY: Final = hashlib.sha256(b"").digest()
"""Root of no entries."""


def leaf_hash(entry: bytes) -> bytes:
    """Of one entry."""
    return hashlib.sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Of two subtrees."""
    return hashlib.sha256(b"\1" + left + right).digest()


class Frontier:
    """A tree that only grows: it keeps the roots of its whole subtrees, at most one for each bit of its size.

    Attributes:
        size: Number of leaves.
    """

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []  # of the set bits of `size`, the largest first

    def copy(self) -> "Frontier":
        """The same tree, to grow apart."""
        other = Frontier()
        other.size, other._peaks = self.size, list(self._peaks)
        return other

    def append(self, leaf: bytes) -> None:
        """Put a leaf's hash at the end."""
        size, peaks = self.size, self._peaks
        while size & 1:
            leaf = node_hash(peaks.pop(), leaf)
            size >>= 1
        peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """Of all leaves so far."""
        if not self._peaks:
            return EMPTY
        found = self._peaks[-1]
        for peak in self._peaks[-2::-1]:
            found = node_hash(peak, found)
        return found


class Tree:
    """A tree of known leaves, with all its nodes: the root over any number of the first ones is a few hashes away.

    Args:
        leaves: Their hashes.
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels = [leaves]
        while len(level := self._levels[-1]) > 1:
            self._levels.append([node_hash(*pair) for pair in zip(level[::2], level[1::2], strict=False)])

    def root(self, size: int) -> bytes:
        """Over the first `size` leaves.

        Raises:
            IndexError: The tree has fewer.
        """
        if not 0 <= size <= len(self._levels[0]):
            raise IndexError(f"the first {size} of {len(self._levels[0])} leaves")
        # Each bit of the size is a whole subtree, the smallest at the right.
        peaks = [level[(size >> height) - 1] for height, level in enumerate(self._levels) if size >> height & 1]
        return reduce(lambda right, left: node_hash(left, right), peaks) if peaks else EMPTY


def root_of(leaves: Iterable[bytes]) -> bytes:
    """Root over the leaves' hashes."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """That leaf `index` (from 0) is in the tree of these leaves: the audit path of section 2.1.1, the lowest first.

    Raises:
        IndexError: There is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of {len(leaves)}")
    low, high, path = 0, len(leaves), []
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            path.append(root_of(leaves[middle:high]))
            high = middle
        else:
            path.append(root_of(leaves[low:middle]))
            low = middle
    return path[::-1]


def root_by_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    """Root of the tree of `size` leaves that `proof` puts the leaf in; None where the proof has another length."""
    if not 0 <= index < size:
        return None
    low, high, left = 0, size, []
    while high - low > 1:
        middle = low + _split(high - low)
        left.append(index >= middle)
        low, high = (middle, high) if index >= middle else (low, middle)
    if len(proof) != len(left):
        return None
    found = leaf
    for is_left, other in zip(reversed(left), proof, strict=True):
        found = node_hash(other, found) if is_left else node_hash(found, other)
    return found


def consistency_proof(leaves: Sequence[bytes], size: int) -> list[bytes]:
    """That the tree of the first `size` leaves is the beginning of the tree of all: section 2.1.2.

    Raises:
        IndexError: `size` is not from 1 to the number of leaves.
    """
    if not 1 <= size <= len(leaves):
        raise IndexError(f"the first {size} of {len(leaves)} leaves")
    low, high, whole, path = 0, len(leaves), True, []
    while size < high:
        middle = low + _split(high - low)
        if size <= middle:
            path.append(root_of(leaves[middle:high]))
            high = middle
        else:
            path.append(root_of(leaves[low:middle]))
            low, whole = middle, False
    if not whole:
        path.append(root_of(leaves[low:high]))
    return path[::-1]


def is_consistent(old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that the tree of `old_size` leaves is the beginning of that of `size` leaves.

    The check of RFC 9162, section 2.1.4.2.
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
            old, new = node_hash(other, old), node_hash(other, new)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            new = node_hash(new, other)
        first, last = first >> 1, last >> 1
    return last == 0 and old == old_root and new == root


def _split(count: int) -> int:
    """The largest power of two below `count`, which is at least 2."""
    return 1 << (count - 1).bit_length() - 1
