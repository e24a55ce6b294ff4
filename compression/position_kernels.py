"""The loops of the context code of positions; what they compute is described in `context_positions`.

One walk serves both directions, so that encoder and decoder cannot drift apart: it goes through tensors, rows and parts
of rows, and codes or decodes the next position wherever the one coder would. All numbers are int64 and stay in it: the
bounds that matter stand beside the formulas.
"""

from typing import Final

import numpy as np

from fedglm.compression import range_kernels as rc
from fedglm.compression.column_kernels import EVEN, learn_columns, shape_of
from fedglm.compression.hazard_kernels import ALL, BIT, RATE, SYMBOL, hazard_of, rate_of, survival
from fedglm.compression.kernels import kernel
from fedglm.compression.vectors import Positions

LONGEST_ROW: Final = 1 << 18
SHORTEST_ROW: Final = 32
FEWEST_ROWS: Final = 4
"""The tensors whose columns are learnt; any other is one row. They bound the memory and the time that a row costs."""
MOST_POSITIONS: Final = 1 << 30
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
    while low < high:
        middle = (low + high + 1) >> 1
        if weight[middle] <= mass:
            low = middle
        else:
            high = middle - 1
    return low


@kernel
def _symbol(encoding: bool, state: rc.State, code: rc.Code, upper: int, lower: int) -> None:
    """What lies between two survivals."""
    if encoding:
        rc.encode(state, code, ALL - upper, upper - lower, SYMBOL)
    else:
        rc.decode_step(state, code, ALL - upper, upper - lower, SYMBOL)


@kernel
def _columns_of(
    encoding: bool,
    state: rc.State,
    code: rc.Code,
    cursor: Positions,
    weight: Positions,
    rank: Positions,
    first: int,
    last: int,
    part: int,
    hits: int,
    exposure: int,
    base: int,
    row: Positions,
) -> int:
    """The hits of a row with ranks from `first` to below `last`; returns how many.

    cursor: (hazard since the last symbol, the survival at which the code lies or 0, positions not yet coded).
    hits, exposure: the Gamma prior of the row's rate, hits in 2**-8.
    base: position of the row's first column.
    row: the row's positions from there on, ascending; when decoding, where the ranks found go.
    """
    found = 0
    look = 0
    at = first
    end = min(last, at + part)
    rate = rate_of(hits, exposure)
    while at < last and cursor[_LEFT] > 0:
        if cursor[_SKIPPED] > _PENDING:
            _symbol(encoding, state, code, survival(cursor[_SKIPPED]), 0)
            cursor[_SKIPPED] = 0
            cursor[_VALUE] = 0
        skipped = cursor[_SKIPPED]
        before = _mass(weight, at)
        mass = _mass(weight, end) - before
        hazard = (mass * rate) >> 10
        near = end
        if hazard > _STEP:
            near = _rank_at(weight, at + 1, end, before + (6 << RATE) // rate)
            mass = _mass(weight, near) - before
            hazard = min(_STEP, (mass * rate) >> 10)
        hit = near
        value = np.int64(0)
        if encoding:
            while look < row.size:
                candidate = row[look] - base
                if rank.size > 0:
                    candidate = rank[candidate]
                if first <= candidate < last:
                    hit = min(near, candidate)
                    break
                look += 1
        else:
            if cursor[_VALUE] == 0:
                cursor[_VALUE] = ALL - rc.decode_value(state, SYMBOL)
            value = cursor[_VALUE]
            if value > survival(skipped + hazard):
                hit = _rank_at(weight, at, near - 1, before + ((hazard_of(value) - skipped) << 10) // rate)
        if hit < near:
            mass = _mass(weight, hit) - before
            upper = survival(skipped + ((mass * rate) >> 10))
            mass = _mass(weight, hit + 1) - before
            lower = survival(skipped + min(_STEP, (mass * rate) >> 10))
            if not encoding:  # the rank is a guess yet
                while value > upper and hit > at:
                    hit -= 1
                    mass = _mass(weight, hit + 1) - before
                    lower = upper
                    upper = survival(skipped + (((_mass(weight, hit) - before) * rate) >> 10))
                while value <= lower and hit < near - 1:
                    hit += 1
                    mass = _mass(weight, hit + 1) - before
                    upper = lower
                    lower = survival(skipped + min(_STEP, (mass * rate) >> 10))
                row[found] = hit
            _symbol(encoding, state, code, upper, lower)
            cursor[_SKIPPED] = 0
            cursor[_VALUE] = 0
            cursor[_LEFT] -= 1
            look += 1
            found += 1
            hits += 256
            at = hit + 1
            mass -= (mass - (_mass(weight, hit) - before)) >> 1  # on average the hit comes midway in its column
        else:
            cursor[_SKIPPED] = skipped + hazard
            at = near
        exposure += mass
        if hits >= _WINDOW:
            hits >>= 1
            exposure >>= 1
        if at == end:
            end = min(last, end + part)
        rate = rate_of(hits, exposure)
    return found


@kernel
def _merge(positions: Positions, middle: int, waiting: Positions) -> None:
    """Put two ascending runs in order, of which the first is `middle` long."""
    for at in range(middle):
        waiting[at] = positions[at]
    write = 0
    read = middle
    for at in range(middle):
        while read < positions.size and positions[read] < waiting[at]:
            positions[write] = positions[read]
            write += 1
            read += 1
        positions[write] = waiting[at]
        write += 1


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

    density: expected, in 2**-32. base: position of its first element.
    tensor: its positions and, when decoding, room for all that are left. scratch: (5, columns + 1).
    """
    learning = height > 1
    columns = width if learning else 0
    weight = scratch[0, : columns + 1 if learning else 0]
    hits = scratch[1, :columns]
    rank = scratch[2, :columns]
    column = scratch[3, :columns]
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
    rows = np.zeros(3, np.int64)  # hits, rows and sum of hits (hits - 1) by row
    recent = np.zeros(2, np.int64)  # hits and rows of the last few, in 2**-16
    done = 0
    for _ in range(height):
        if cursor[_LEFT] == 0:
            break
        stop = tensor.size
        if encoding and learning:
            stop = done
            while stop < tensor.size and tensor[stop] < base + width:
                stop += 1
        row = tensor[done:stop]
        mean = ((rows[0] << 16) + ((density * columns) >> 14)) // (rows[1] + 4)
        expected = max(1, ((recent[0] + 6 * mean) << 16) // (recent[1] + (6 << 16)))  # in 2**-16; below 2**36
        count = 0
        heavy_count = 0
        for group in range(0 if heavy > 0 else 1, 2):  # the heavy columns, and the others
            first = heavy if group else 0
            last = width if group else heavy
            prior_hits = shape if group else _HOT_SHAPE
            if learning:
                prior = ((prior_hits * weight[columns]) << 8) // expected
                part = (last - first + 3) >> 2 if group else last
            else:
                prior = (1 << 42) // density
                part = min(_LONGEST_PART, max(SHORTEST_ROW, (4 << 32) // density))
            heavy_count = count
            rest = row if encoding else row[count:]
            count += _columns_of(
                encoding, state, code, cursor, weight, rank, first, last, part, prior_hits, prior, base, rest
            )
        if not encoding:
            for at in range(count):
                row[at] = base + (column[row[at]] if learning else row[at])
            if 0 < heavy_count < count:
                _merge(row[:count], heavy_count, scratch[4])
        done += count
        if not learning:
            break
        for at in range(count):
            before = hits[row[at] - base]
            hits[row[at] - base] = before + 1
            totals[2] += 2 * before
        base += width
        totals[0] += count
        totals[1] += 1
        rows[0] += count
        rows[1] += 1
        rows[2] += count * (count - 1)
        if rows[0] >= 1 << 24:
            rows[0] >>= 1
            rows[1] = max(1, rows[1] >> 1)
            rows[2] >>= 1
        recent[0] += (count << 16) - (recent[0] >> 3)
        recent[1] += (1 << 16) - (recent[1] >> 3)
        news += count
        if news >= max(4, totals[0] >> 3, width >> 5):
            news = 0
            heavy = learn_columns(hits, totals, weight, rank, column)
            shape = max(26, min(12800, shape_of(rows[0] * rows[0] // rows[1], rows[2], 8)))
    return done


@kernel
def walk(encoding: bool, code: rc.Code, rows: Positions, columns: Positions, size: int, positions: Positions) -> int:
    """Code `positions` (k,) into `code`, or fill them from it.

    rows, columns: (tensors,), either one row or columns within SHORTEST_ROW and LONGEST_ROW; `size` elements in all.
    Of them k are coded, below MOST_POSITIONS and not sparser than SPARSEST.

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
