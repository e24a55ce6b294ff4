"""Checks of what a device computes: with exact activations against the release's golden answers, then as it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from fedglm.inference.release.golden import GoldenAnswer, choose_outputs
from fedglm.inference.release.reader import LightRelease
from fedglm.inference.runtime.architecture import read_architecture
from fedglm.inference.runtime.filled_graph import EXACT_ACTIVATIONS, INTEGER_ACTIVATIONS
from fedglm.inference.runtime.phased_session import open_session
from fedglm.inference.validation.answers import read_answer
from fedglm.inference.validation.tolerance import TIE, exact_tolerance, logit_scale, rounding_tolerance
from fedglm.inference.validation.validation import Check

Logits = npt.NDArray[np.float32]
_UNANSWERED: Final = 16
"""Tokens that a model without golden answers reads."""


def check_answers(release: LightRelease, golden: Sequence[GoldenAnswer], *, threads: int) -> tuple[Check, ...]:
    """Check a release's golden answers on this device.

    The logits are asked for with exact activations, where they must be those of the release but for the roundings of
    float32: another weight or another graph shows. Then as the model is used, with activations in INT8, where they must
    be the exact ones but for that rounding: a kernel that is wrong on this processor shows. A token that leads by too
    little to be told from a tie may be another.

    Args:
        release: The release.
        golden: Its answers, at least one.
        threads: Number of threads of a run.

    Raises:
        InferenceError: The graph cannot be used, or an answer does not fit the model.
    """
    tensors, config = release.model.tensors, release.model.config
    architecture = read_architecture(config)
    seen = dict[int, list[Logits]]()
    for level in (EXACT_ACTIVATIONS, INTEGER_ACTIVATIONS):  # one session at a time, for the memory
        session = open_session(release.skeletons, tensors, config, threads=threads, accuracy_level=level)
        seen[level] = [read_answer(session, answer) for answer in golden]
    exact, fast = (np.concatenate(rows) for rows in seen.values())
    scale = logit_scale(tensors, architecture, exact)
    length = max(len(answer.prompt) + len(answer.tokens) for answer in golden)
    allowed = exact_tolerance(architecture, length) * max(scale, float(np.abs(exact).max()))
    rounding = rounding_tolerance(release.skeletons.values()) * scale
    firsts = [rows[0] for rows in seen[EXACT_ACTIVATIONS]]
    # Where there are no tokens, a classifier's own greatest output stands for them.
    named = [token for answer in golden for token in (answer.tokens or (int(np.argmax(answer.logits)),))]
    whole = [bool(answer.tokens) or len(answer.units) == architecture.outputs for answer in golden]
    checks = [_check_golden(firsts, golden, allowed)]
    if all(whole):
        checks.append(_check_tokens("exact tokens", exact, named, exact, 2 * allowed))
    checks.append(_check_rounding(fast, exact, max(rounding, allowed)))
    if all(whole):
        checks.append(_check_tokens("fast tokens", fast, named, exact, max(TIE * rounding, 2 * allowed)))
    return tuple(checks)


def check_unanswered(release: LightRelease, *, threads: int) -> Check:
    """Check the little that can be of a release without golden answers: its logits are finite, and the same again.

    Args:
        release: The release.
        threads: Number of threads of a run.

    Raises:
        InferenceError: The graph cannot be used.
    """
    session = open_session(release.skeletons, release.model.tensors, release.model.config, threads=threads)
    ids = np.arange(min(_UNANSWERED, session.max_length), dtype=np.int64)[None] % session.vocab_size
    (logits, _), (again, _) = session.run(ids), session.run(ids)
    finite = bool(np.isfinite(logits).all())
    detail = f"{logits.size} logits of {ids.size} tokens, run twice"
    if not finite:
        detail += ", are not all finite"
    elif logits.tobytes() != again.tobytes():
        detail += ", differ"
    return Check(name="finite logits", passed=finite and logits.tobytes() == again.tobytes(), detail=detail)


def _check_golden(firsts: Sequence[Logits], golden: Sequence[GoldenAnswer], allowed: float) -> Check:
    """Check the logits after each prompt, (outputs,) each, against those of the release."""
    offs = [
        float(np.abs(row[choose_outputs(len(row), len(answer.units))] - answer.logits).max())
        for row, answer in zip(firsts, golden, strict=True)
    ]
    bounds = [allowed + answer.unit / 2 for answer in golden]
    at = int(np.argmax(np.array(offs) / np.array(bounds)))  # a NaN counts as the greatest
    count = sum(len(answer.units) for answer in golden)
    return Check(
        name="exact logits",
        passed=offs[at] <= bounds[at],
        detail=f"off by {offs[at]:.2g} at most, {bounds[at]:.2g} allowed ({count} logits)",
    )


def _check_rounding(fast: Logits, exact: Logits, allowed: float) -> Check:
    """Check the logits of rounded activations against the exact ones, by the root mean square of their difference."""
    off = float(np.sqrt(np.mean(np.square(fast - exact, dtype=np.float64))))
    return Check(
        name="fast logits",
        passed=off <= allowed,
        detail=f"off by {off:.2g} (root mean square), {allowed:.2g} allowed ({exact.size} logits)",
    )


def _check_tokens(name: str, logits: Logits, named: Sequence[int], exact: Logits, tie: float) -> Check:
    """Check that the likeliest outputs are those named, but where the exact logits are nearer than `tie`."""
    rows = np.arange(len(named))
    found = logits.argmax(axis=1)
    lead = exact[rows, named] - exact[rows, found]
    same, near = found == named, np.abs(lead) <= tie
    wrong = int(np.count_nonzero(~(same | near)))
    ties = int(np.count_nonzero(~same & near))
    return Check(
        name=name,
        passed=wrong == 0,
        detail=f"{int(np.count_nonzero(same))} of {len(named)} equal, {ties} nearly tied, {wrong} wrong",
    )
