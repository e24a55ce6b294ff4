"""The loops of the context code of positions; `positions.context` describes the model.

One walk serves both directions, so that encoder and decoder cannot diverge: it goes through tensors, rows and parts of
rows, and encodes or decodes the next position at the same place. All numbers are int64 and do not overflow it: the
bounds that matter stand beside the formulas.

One function codes a whole tensor, and the functions it calls for each symbol are small enough for LLVM to inline: a
call that is not inlined counts references to its array arguments, atomically, which took longer than a row.
"""

from typing import Final

import numpy as np

from fedglm.compression.kernels import range_coder as rc
from fedglm.compression.kernels.columns import EVEN, estimate_shape, learn_columns
from fedglm.compression.kernels.compiled import kernel
from fedglm.compression.kernels.hazard import ALL, BIT, RATE, SYMBOL, estimate_hazard, estimate_rate, survival
from fedglm.compression.vectors import Positions

LONGEST_ROW: Final = 1 << 18
SHORTEST_ROW: Final = 32
FEWEST_ROWS: Final = 4
"""Limits of the tensors whose columns are learnt; any other is one row. They bound the memory and time of a row."""
MAX_POSITIONS: Final = 1 << 30
SPARSEST: Final = 1 << 17
"""Maximum elements per position: for sparser supports the fixed-point numbers are too coarse."""
_STEP: Final = 6 << BIT  # the largest hazard that one symbol looks ahead
_PENDING: Final = 2 << BIT  # above this, the skipped hazard becomes a symbol of its own
_WINDOW: Final = 1 << 20  # 4096 hits in units of 2**-8: past it, a row's counts are halved
_LONGEST_PART: Final = 1 << 18
_HOT_SHAPE: Final = 77  # shape of the Gamma prior of a row's rate, in units of 2**-8: 0.3 for the heavy columns ...
_ROW_SHAPE: Final = 256  # ... and 1 for the others until it is learnt from data

_SKIPPED, _VALUE, _LEFT = 0, 1, 2
"""Indices of the walk's cursor: hazard since the last symbol, the survival at which the code lies (0: not yet known),
and the number of positions still to be coded."""
_HITS, _ROWS, _PAIRS, _LAST_HITS, _LAST_ROWS = 0, 1, 2, 3, 4
"""Indices of the counts of a tensor's rows: hits, rows, sum of hits (hits - 1) by row; hits and rows of the last few,
in units of 2**-16."""


@kernel
def _mass_below(weight: Positions, at: int) -> int:
    """Return the weight of the columns of lower rank; without learnt weights all are equal."""
    if weight.size == 0:
        return at * EVEN
    mass: int = weight[at]
    return mass


@kernel
def _find_rank(weight: Positions, low: int, high: int, mass: int) -> int:
    """Return the last rank from `low` to `high` that has at most weight `mass` below it, or `low`."""
    if weight.size == 0:
        return max(low, min(high, mass // EVEN))
    while high - low >= 8:  # seven at once, because the branch predictor cannot guess which passes
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
def _expect_hits(density: int, columns: int, rows: Positions) -> int:
    """Predict the next row's hits, in units of 2**-16, 1 to below 2**36, by the last rows, all rows and the density."""
    mean = ((rows[_HITS] << 16) + ((density * columns) >> 14)) // (rows[_ROWS] + 4)
    expected: int = max(1, ((rows[_LAST_HITS] + 6 * mean) << 16) // (rows[_LAST_ROWS] + (6 << 16)))
    return expected


@kernel
def _count_row(rows: Positions, count: int) -> None:
    """Add a row's hits to the counts of its tensor's rows."""
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
def _merge_runs(
    ranks: Positions, heavy: int, count: int, column: Positions, base: int, tensor: Positions, at: int
) -> None:
    """Merge the columns of a row's ranks into `tensor` from `at` on: two ascending runs, the first `heavy` long."""
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
def _code_tensor(
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
    """Code a tensor's hits; return their number. A tensor of one row has no columns to learn.

    Args:
        encoding: Whether to encode; else decode.
        state: State of the range coder.
        code: Bytes to write, or to read.
        cursor: (hazard since the last symbol, survival at which the code lies or 0, positions not yet coded).
        density: Expected density, in units of 2**-32.
        height: Rows of the tensor.
        width: Columns of the tensor.
        base: Position of the tensor's first element.
        tensor: Positions of its hits; when decoding, room for all that are left.
        scratch: Working memory, (5, columns + 1).
    """
    learning = height > 1
    columns = width if learning else 0
    weight = scratch[0, : columns + 1 if learning else 0]
    hits = scratch[1, :columns]
    rank = scratch[2, :columns]
    column = scratch[3, :columns]
    ranks = scratch[4] if learning else tensor  # ranks of the row's hits in the order in which they are coded
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
        expected = _expect_hits(density, columns, rows)
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
                    coming += first <= ranks[coming] < last  # without a branch, which would be mispredicted
            else:
                start = base
                exposure = (1 << 42) // density
                part = min(_LONGEST_PART, max(SHORTEST_ROW, (4 << 32) // density))
                coming = stop
            at = first
            before = _mass_below(weight, at)
            end = min(last, at + part)
            behind = _mass_below(weight, end)
            while at < last and left > 0:
                rate = estimate_rate(prior, exposure)
                mass = behind - before
                hazard = (mass * rate) >> 10
                near = end
                if hazard > _STEP:
                    near = _find_rank(weight, at + 1, end, before + (6 << RATE) // rate)
                    mass = _mass_below(weight, near) - before
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
                            hit = _find_rank(
                                weight, at, near - 1, before + ((estimate_hazard(value) - skipped) << 10) // rate
                            )
                    if hit == near:
                        skipped += hazard
                        at = near
                        before += mass
                        exposure += mass
                        if at == end:
                            end = min(last, end + part)
                            behind = _mass_below(weight, end)
                        continue
                    lighter = _mass_below(weight, hit) - before
                    mass = _mass_below(weight, hit + 1) - before
                    upper = survival(skipped + ((lighter * rate) >> 10))
                    lower = survival(skipped + min(_STEP, (mass * rate) >> 10))
                    if not encoding:  # the rank is still an estimate
                        while value > upper and hit > at:
                            hit -= 1
                            mass = lighter
                            lighter = _mass_below(weight, hit) - before
                            lower = upper
                            upper = survival(skipped + ((lighter * rate) >> 10))
                        while value <= lower and hit < near - 1:
                            hit += 1
                            lighter = mass
                            mass = _mass_below(weight, hit + 1) - before
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
                if lower == 0:  # the symbol means only that there was no hit in the skipped hazard
                    continue
                left -= 1
                count += 1
                at = hit + 1
                before += mass
                prior += 256
                exposure += mass - ((mass - lighter) >> 1)  # on average a hit lies midway in its column
                if prior >= _WINDOW:
                    prior >>= 1
                    exposure >>= 1
                if at == end:
                    end = min(last, end + part)
                    behind = _mass_below(weight, end)
        done += count
        if learning:
            if not encoding:
                _merge_runs(ranks, heavy_count, count, column, base, tensor, done - count)
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
                shape = max(26, min(12800, estimate_shape(rows[_HITS] * rows[_HITS] // rows[_ROWS], rows[_PAIRS], 8)))
    cursor[_SKIPPED] = skipped
    cursor[_VALUE] = value
    cursor[_LEFT] = left
    return done


@kernel
def walk(encoding: bool, code: rc.Code, rows: Positions, columns: Positions, size: int, positions: Positions) -> int:
    """Encode `positions` (k,) into `code`, or fill them from it.

    Args:
        encoding: Whether to encode; else decode.
        code: Bytes to write, or to read.
        rows: Rows of each tensor, (tensors,).
        columns: Columns of each tensor, (tensors,), from SHORTEST_ROW to LONGEST_ROW where it has more than one row.
        size: Number of elements of all tensors.
        positions: Ascending, (k,), k below MAX_POSITIONS and at least size / SPARSEST.

    Returns:
        When encoding, the code's length, above `code.size` where it did not fit. When decoding, 1, or 0 if `code` is
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
            stop = _find_rank(positions, done - 1, stop - 1, base + height * width - 1) + 1
        here = positions[done:stop]
        done += _code_tensor(encoding, state, code, cursor, density, height, width, base, here, scratch)
        base += height * width
    if encoding:
        return rc.end_encoding(state, code)
    return 1 if cursor[_LEFT] == 0 and rc.is_finished(state, code) else 0
