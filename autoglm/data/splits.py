"""Assignment of records to sites, iid or by Dirichlet, and the choice of each site's held-out units.

Units are assigned as a whole, never single rows: a patient's records go to one node (or, by site, stay where they were
made), and are either all trained on or all held out, at every site. What a site holds out of records of its own follows
from those and the seed, so that the site alone splits them as a simulation of all sites does. Dirichlet: Hsu, Qi,
Brown, arXiv:1909.06335, section 3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fedglm.autoglm.errors import DataError

Indices = npt.NDArray[np.int64]
MIN_UNITS = 2
"""Minimum number of a simulated site's units: one to train on, one to hold out."""


def split_iid(units: int, nodes: int, rng: np.random.Generator) -> list[Indices]:
    """Split units over nodes at random, in counts as equal as possible; return sorted arrays of unit numbers.

    Raises:
        DataError: There are fewer than two units per node.
    """
    _check_unit_count(units, nodes)
    return [np.sort(part) for part in np.array_split(rng.permutation(units), nodes)]


def split_dirichlet(groups: Indices, nodes: int, alpha: float, rng: np.random.Generator) -> list[Indices]:
    """Split each group's units over nodes by shares drawn from Dirichlet(alpha); return sorted arrays of unit numbers.

    A node with fewer than two units gets some from the largest node.

    Args:
        groups: Class (or a document's group) of each unit, (U,), int64; with a single group only the sizes are uneven.
        nodes: Number of nodes.
        alpha: Concentration, dimensionless.
        rng: Random generator of the draw.

    Raises:
        DataError: There are fewer than two units per node.
    """
    _check_unit_count(len(groups), nodes)
    parts: list[list[int]] = [[] for _ in range(nodes)]
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        shares = rng.dirichlet(np.full(nodes, alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for part, chunk in zip(parts, np.split(members, cuts), strict=True):
            part.extend(chunk.tolist())
    for part in parts:
        while len(part) < MIN_UNITS:
            part.append(max(parts, key=len).pop())
    return [np.array(sorted(part), dtype=np.int64) for part in parts]


def choose_held_out(site_units: dict[str, Indices], share: float, rng: np.random.Generator) -> set[int]:
    """Choose the units to hold out, about ``share`` of each site's and at least one, leaving at least one to train on.

    A unit at several sites is held out at all of them or at none, so some sites may miss their share a little.

    Args:
        site_units: Unit numbers of each site by name, (u,), int64, each once.
        share: Share of each site's units, between 0 and 1.
        rng: Random generator of the draw.

    Raises:
        DataError: A site has fewer than two units, or shares so many with other sites that one side stays empty.
    """
    held_out: set[int] = set()
    trained: set[int] = set()
    # Small sites choose first: a large one still has enough units that no other site has assigned.
    for name, units in sorted(site_units.items(), key=lambda item: (len(item[1]), item[0])):
        if len(units) < MIN_UNITS:
            raise DataError(f"site {name!r} has {len(units)} unit; it needs two, one to train on and one to hold out")
        free = [int(u) for u in rng.permutation(units) if u not in held_out and u not in trained]
        wanted = min(max(round(share * len(units)), 1), len(units) - 1)
        more = max(wanted - sum(int(u) in held_out for u in units), 0)
        held_out.update(free[:more])
        trained.update(free[more:])
        if not any(int(u) in held_out for u in units) or all(int(u) in held_out for u in units):
            problem = f"site {name!r} shares its units with other sites, and none is left for one side of the split"
            raise DataError(f"{problem}; give every site's units names of their own")
    return held_out


def hash_held_out(units: Iterable[bytes], share: float, *, seed: int, fill: bool) -> npt.NDArray[np.bool_]:
    """Choose a site's rows to hold out, (N,), bool, by a hash of each row's unit: about ``share`` of its units.

    A random draw among the existing units would move many of them when one is added: an update would then reveal far
    more about one record than its clipped gradient. The same unit falls on the same side at every site.

    Args:
        units: Unit of each row.
        share: Share of the units, between 0 and 1.
        seed: Seed of the choice.
        fill: Whether a site of two units or more gets at least one on each side, that with the nearest hash. One unit
            more may then move another, so noise would not cover it: never where updates are noised.
    """
    key = hashlib.sha256(str(seed).encode()).digest()
    digests = (hashlib.blake2b(unit, key=key, digest_size=8).digest() for unit in units)
    drawn = np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.uint64)
    held_out: npt.NDArray[np.bool_] = drawn < np.uint64(share * 2**64)
    if not fill or not len(drawn) or drawn.min() == drawn.max():
        return held_out
    if held_out.all():
        held_out = drawn != drawn.max()
    elif not held_out.any():
        held_out = drawn == drawn.min()
    return held_out


def _check_unit_count(units: int, nodes: int) -> None:
    if nodes < 1:
        raise DataError(f"a federation needs at least one node, not {nodes}")
    if nodes == 1 and units < MIN_UNITS:
        raise DataError(
            f"there is {units} unit; a node needs two, one to train on and one to hold out: does unit_field name a "
            "person or document?"
        )
    if units < MIN_UNITS * nodes:
        max_nodes = units // MIN_UNITS
        raise DataError(
            f"{nodes} nodes need two units each and there are {units} in all; use at most {max_nodes} nodes"
        )
