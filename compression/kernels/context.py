"""The loops of the context code of positions; what they compute is described in `context_positions`.

One walk serves both directions, so that encoder and decoder cannot drift apart: it goes through tensors, rows and parts
of rows, and codes or decodes the next position wherever the one coder would. All numbers are int64 and stay in it: the
bounds that matter stand beside the formulas.

A tensor is one function, from its rows to its symbols, and what it calls for each of them is small enough for LLVM to
inline: a call that stays one counts references to the arrays it is given, atomically, and that took longer than a row.
"""

from typing import Final

import numpy as np

from fedglm.compression.kernels import range_coder as rc
from fedglm.compression.kernels.columns import EVEN, learn_columns, shape_of
from fedglm.compression.kernels.compiled import kernel
from fedglm.compression.kernels.hazard import ALL, BIT, RATE, SYMBOL, hazard_of, rate_of, survival
from fedglm.compression.vectors import Positions

LONGEST_ROW: Final = 1 << 18
SHORTEST_ROW: Final = 32
FEWEST_ROWS: Final = 4
"""The tensors whose columns are learnt; any other is one row. They bound the memory and the time that a row costs."""
MAX_POSITIONS: Final = 1 << 30
SPARSEST: Final = 1 << 17
"""Elements for each position, at most: below, the numbers here are not fine enough."""
_STEP: Final = 6 << BIT  # the largest hazard that one symbol looks ahead
_PENDING: Final = 2 << BIT  # above this, the skipped hazard becomes a symbol of its own
_WINDOW: Final = 1 << 20  # 4096 hits in 2**-8: past it, a row forgets half of what it saw
_LONGEST_PART: Final = 1 << 18
_HOT_SHAPE: Final = 77  # of the Gamma prior of a row's rate, in 2**-8: 0.3 for the heavy columns ...
_ROW_SHAPE: Final = 256  # ... and 1 for the others until there is something to learn it from

_SKIPPED, _VALUE, _LEFT = 0, 1, 2
"""The walk's cursor: hazard since the last symbol, the survival at which the code lies (0: not yet known), and how many
positions are still to come."""
_HITS, _ROWS, _PAIRS, _LAST_HITS, _LAST_ROWS = 0, 1, 2, 3, 4
"""Tallies of a tensor's rows: hits, rows, sum of hits (hits - 1) by row; hits and rows of the last few, in 2**-16."""


@kernel
def _mass(weight: Positions, at: int) -> int:
    """Weight of the columns of lower rank; without learnt weights all are even."""
    if weight.size == 0:
        return at * EVEN
    mass: int = weight[at]
    return mass


@kernel
def _rank_at(weight: Positions, low: int, high: int, mass: int) -> int:
    """The last rank from `low` to `high` that has at most so much weight below it, or `low`."""
    if weight.size == 0:
        return max(low, min(high, mass // EVEN))
    while high - low >= 8:  # seven at once, because whether one passes cannot be foretold
        step = (high - low) >> 3
        passed = 0
        for seventh in range(1, 8):
            passed += weight[low + seventh * step] <= mass
        low += passed * step
        if passed < 7:
            high = low + step - 1
    while low < high and weight[low + 1] <= mass:
        low += 1
    return low


@kernel
def _expected(density: int, columns: int, rows: Positions) -> int:
    """Hits of the next row in 2**-16, at least 1 and below 2**36: from the last rows, all rows and the density."""
    mean = ((rows[_HITS] << 16) + ((density * columns) >> 14)) // (rows[_ROWS] + 4)
    expected: int = max(1, ((rows[_LAST_HITS] + 6 * mean) << 16) // (rows[_LAST_ROWS] + (6 << 16)))
    return expected


@kernel
def _count_row(rows: Positions, count: int) -> None:
    """Take a row's hits into the tallies of a tensor's rows."""
    rows[_HITS] += count
    rows[_ROWS] += 1
    rows[_PAIRS] += count * (count - 1)
    if rows[_HITS] >= 1 << 24:
        rows[_HITS] >>= 1
        rows[_ROWS] = max(1, rows[_ROWS] >> 1)
        rows[_PAIRS] >>= 1
    rows[_LAST_HITS] += (count << 16) - (rows[_LAST_HITS] >> 3)
    rows[_LAST_ROWS] += (1 << 16) - (rows[_LAST_ROWS] >> 3)


@kernel
def _put_in_order(
    ranks: Positions, heavy: int, count: int, column: Positions, base: int, tensor: Positions, at: int
) -> None:
    """The positions of a row's ranks into `tensor` from `at` on: two runs, the first `heavy` long, each ascending."""
    first = 0
    second = heavy
    for index in range(at, at + count):
        if second == count or (first < heavy and column[ranks[first]] < column[ranks[second]]):
            tensor[index] = base + column[ranks[first]]
            first += 1
        else:
            tensor[index] = base + column[ranks[second]]
            second += 1


@kernel
def _tensor(
    encoding: bool,
    state: rc.State,
    code: rc.Code,
    cursor: Positions,
    density: int,
    height: int,
    width: int,
    base: int,
    tensor: Positions,
    scratch: Positions,
) -> int:
    """Code a tensor's hits; returns how many. What is one row has no columns to learn.

    cursor: (hazard since the last symbol, the survival at which the code lies or 0, positions not yet coded).
    density: expected, in 2**-32. base: position of its first element.
    tensor: its positions and, when decoding, room for all that are left. scratch: (5, columns + 1).
    """
    learning = height > 1
    columns = width if learning else 0
    weight = scratch[0, : columns + 1 if learning else 0]
    hits = scratch[1, :columns]
    rank = scratch[2, :columns]
    column = scratch[3, :columns]
    ranks = scratch[4] if learning else tensor  # of the row's hits in the order in which they are coded
    for at in range(columns):
        weight[at] = at * EVEN
        hits[at] = 0
        rank[at] = at
        column[at] = at
    if learning:
        weight[columns] = columns * EVEN
    heavy = 0
    shape = _ROW_SHAPE
    totals = np.zeros(3, np.int64)
    news = 0
    rows = np.zeros(5, np.int64)
    done = 0
    skipped = cursor[_SKIPPED]
    value = cursor[_VALUE]
    left = cursor[_LEFT]
    for _ in range(height):
        if left == 0:
            break
        expected = _expected(density, columns, rows)
        stop = done if learning else tensor.size
        if encoding and learning:
            while stop < tensor.size and tensor[stop] < base + width:
                stop += 1
        count = 0
        heavy_count = 0
        for group in range(0 if heavy > 0 else 1, 2):  # the heavy columns, and the others
            first = heavy if group else 0
            last = width if group else heavy
            heavy_count = count
            prior = shape if group else _HOT_SHAPE
            if learning:
                start = 0
                exposure = ((prior * weight[columns]) << 8) // expected
                part = (last - first + 3) >> 2 if group else last
                coming = count
                for at in range(done, stop):
                    ranks[coming] = rank[tensor[at] - base]
                    coming += first <= ranks[coming] < last  # no branch, because it cannot be foretold
            else:
                start = base
                exposure = (1 << 42) // density
                part = min(_LONGEST_PART, max(SHORTEST_ROW, (4 << 32) // density))
                coming = stop
            at = first
            before = _mass(weight, at)
            end = min(last, at + part)
            behind = _mass(weight, end)
            while at < last and left > 0:
                rate = rate_of(prior, exposure)
                mass = behind - before
                hazard = (mass * rate) >> 10
                near = end
                if hazard > _STEP:
                    near = _rank_at(weight, at + 1, end, before + (6 << RATE) // rate)
                    mass = _mass(weight, near) - before
                    hazard = min(_STEP, (mass * rate) >> 10)
                hit = near
                if skipped <= _PENDING:
                    if encoding:
                        if count < coming:
                            hit = min(near, ranks[count] - start)
                    else:
                        if value == 0:
                            value = ALL - rc.decode_value(state, SYMBOL)
                        if value > survival(skipped + hazard):
                            hit = _rank_at(weight, at, near - 1, before + ((hazard_of(value) - skipped) << 10) // rate)
                    if hit == near:
                        skipped += hazard
                        at = near
                        before += mass
                        exposure += mass
                        if at == end:
                            end = min(last, end + part)
                            behind = _mass(weight, end)
                        continue
                    lighter = _mass(weight, hit) - before
                    mass = _mass(weight, hit + 1) - before
                    upper = survival(skipped + ((lighter * rate) >> 10))
                    lower = survival(skipped + min(_STEP, (mass * rate) >> 10))
                    if not encoding:  # the rank is a guess yet
                        while value > upper and hit > at:
                            hit -= 1
                            mass = lighter
                            lighter = _mass(weight, hit) - before
                            lower = upper
                            upper = survival(skipped + ((lighter * rate) >> 10))
                        while value <= lower and hit < near - 1:
                            hit += 1
                            lighter = mass
                            mass = _mass(weight, hit + 1) - before
                            upper = lower
                            lower = survival(skipped + min(_STEP, (mass * rate) >> 10))
                        ranks[count] = start + hit
                else:
                    upper = survival(skipped)
                    lower = 0
                if encoding:
                    rc.encode(state, code, ALL - upper, upper - lower, SYMBOL)
                else:
                    rc.decode_step(state, code, ALL - upper, upper - lower, SYMBOL)
                skipped = 0
                value = 0
                if lower == 0:  # the symbol says that none was skipped, and no more
                    continue
                left -= 1
                count += 1
                at = hit + 1
                before += mass
                prior += 256
                exposure += mass - ((mass - lighter) >> 1)  # on average the hit comes midway in its column
                if prior >= _WINDOW:
                    prior >>= 1
                    exposure >>= 1
                if at == end:
                    end = min(last, end + part)
                    behind = _mass(weight, end)
        done += count
        if learning:
            if not encoding:
                _put_in_order(ranks, heavy_count, count, column, base, tensor, done - count)
            for at in range(done - count, done):
                before = hits[tensor[at] - base]
                hits[tensor[at] - base] = before + 1
                totals[2] += 2 * before
            totals[0] += count
            totals[1] += 1
            _count_row(rows, count)
            base += width
            news += count
            if news >= max(4, totals[0] >> 3, width >> 5):
                news = 0
                heavy = learn_columns(hits, totals, weight, rank, column)
                shape = max(26, min(12800, shape_of(rows[_HITS] * rows[_HITS] // rows[_ROWS], rows[_PAIRS], 8)))
    cursor[_SKIPPED] = skipped
    cursor[_VALUE] = value
    cursor[_LEFT] = left
    return done


@kernel
def walk(encoding: bool, code: rc.Code, rows: Positions, columns: Positions, size: int, positions: Positions) -> int:
    """Code `positions` (k,) into `code`, or fill them from it.

    rows, columns: (tensors,), either one row or columns within SHORTEST_ROW and LONGEST_ROW; `size` elements in all.
    Of them k are coded, below MAX_POSITIONS and not sparser than SPARSEST.

    Returns the code's length when encoding (above `code.size` where it did not fit). When decoding, 1, or 0 if this is
    not the one code of any positions.
    """
    state = rc.start_encoding() if encoding else rc.start_decoding(code)
    widest = 0
    for tensor in range(rows.size):
        if rows[tensor] > 1:
            widest = max(widest, columns[tensor])
    scratch = np.zeros((5, widest + 1), np.int64)
    cursor = np.zeros(3, np.int64)
    cursor[_LEFT] = positions.size
    base = 0
    done = 0
    for tensor in range(rows.size):
        if cursor[_LEFT] == 0:
            break
        density = max(1 << 12, (cursor[_LEFT] << 32) // (size - base))
        height = rows[tensor]
        width = columns[tensor]
        stop = positions.size
        if encoding:
            stop = _rank_at(positions, done - 1, stop - 1, base + height * width - 1) + 1
        here = positions[done:stop]
        done += _tensor(encoding, state, code, cursor, density, height, width, base, here, scratch)
        base += height * width
    if encoding:
        return rc.end_encoding(state, code)
    return 1 if cursor[_LEFT] == 0 and rc.finished(state, code) else 0
