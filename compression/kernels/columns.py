"""Column weights of the context code of positions, learnt tensor by tensor."""

from typing import Final

from fedglm.compression.kernels.compiled import kernel
from fedglm.compression.vectors import Positions

EVEN: Final = 1 << 10  # the weight of an average column
_LIGHTEST: Final = EVEN >> 4
_HEAVIEST: Final = 1 << 20


@kernel
def learn_columns(hits: Positions, totals: Positions, weight: Positions, rank: Positions, column: Positions) -> int:
    """Recompute the cumulative weights by rank, heavy columns first and otherwise in order; return the heavy columns.

    Args:
        hits: Hits of each column, (columns,).
        totals: Sum of the hits, number of rows, and sum of hits (hits - 1), which gives the variance of the columns'
            rates.
        weight: Receives the cumulative weights, (columns + 1,).
        rank: Receives the rank of each column, (columns,).
        column: Receives the column of each rank, (columns,).

    Returns:
        Number of heavy columns.
    """
    columns = hits.size
    if totals[0] > columns << 12:  # halve all counts, so that `total` stays below 2**31
        totals[0] = 0
        totals[1] = max(1, totals[1] >> 1)
        totals[2] = 0
        for at in range(columns):
            hits[at] >>= 1
            totals[0] += hits[at]
            totals[2] += hits[at] * (hits[at] - 1)
    total = totals[0]
    shape = estimate_shape(total * total // columns, totals[2], 2)
    inverse = (columns << 32) // (shape * columns + (total << 8))
    mean = min(1 << 16, (total << 16) // (totals[1] * columns))
    heavy = 0
    light_mass = 0
    for at in range(columns):
        even = ((shape + (hits[at] << 8)) * inverse) >> 22  # of all hits, in EVEN at a fair share; below 2**28
        often = min(62000, (even * mean) >> 10)  # of all rows, in 2**-16
        cube = (((often * often) >> 16) * often) >> 16
        even += (even * ((often >> 1) + cube)) >> 16  # about -log(1 - often): a column is hit once a row at most
        even = max(_LIGHTEST, min(_HEAVIEST, even))
        column[at] = even
        if even > 2 * EVEN:
            heavy += 1
            light_mass += even
    next_heavy = 0
    next_light = heavy
    heavy_mass = 0
    for at in range(columns):
        if column[at] > 2 * EVEN:
            rank[at] = next_heavy
            next_heavy += 1
            heavy_mass += column[at]
            weight[next_heavy] = heavy_mass
        else:
            rank[at] = next_light
            next_light += 1
            light_mass += column[at]
            weight[next_light] = light_mass
    for at in range(columns):
        column[rank[at]] = at
    return heavy


@kernel
def estimate_shape(even: int, pairs: int, prior: int) -> int:
    """Estimate the shape (in units of 2**-8, 0.02 to 200) of the Gamma distribution of rates from pairs of hits.

    Args:
        even: Pairs expected if all rates were equal: the square of the sum of the counts, divided by their number.
        pairs: Pairs observed: the sum of count (count - 1).
        prior: 4 divided by the shape before any data.
    """
    return max(5, min(51200, ((even + 4) << 8) // (max(pairs - even, 0) + prior)))
