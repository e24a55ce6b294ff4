"""The answers of a model to prompts: made where a release is written, and asked for again where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from fedglm.inference.release.golden import GoldenAnswer, choose_outputs
from fedglm.inference.runtime.architecture import LANGUAGE_MODEL, Architecture
from fedglm.inference.runtime.session import Session

PROMPT_TOKENS: Final = 8
"""Maximum number of tokens of a prompt."""
ANSWER_TOKENS: Final = 8
"""Number of tokens of an answer of a language model."""
LOGITS: Final = 8
"""Maximum number of logits of an answer."""


def make_answers(
    session: Session, architecture: Architecture, prompts: Sequence[Sequence[int]]
) -> tuple[GoldenAnswer, ...]:
    """Ask a model for its likeliest tokens.

    Args:
        session: The model, with exact activations.
        architecture: Its shape.
        prompts: Ids of prompts from public text, each at least one; the first `PROMPT_TOKENS` are read.

    Raises:
        InferenceError: A prompt does not fit the model.
    """
    answers = []
    for blank in blank_answers(architecture, prompts):
        logits, cache = session.run(np.array([blank.prompt], dtype=np.int64))
        first, tokens = logits[0, -1, choose_outputs(architecture.outputs, len(blank.units))], list[int]()
        for _ in blank.tokens:
            if tokens:
                logits, cache = session.run(np.array([tokens[-1:]], dtype=np.int64), cache)
            tokens.append(int(logits[0, -1].argmax()))
        answers.append(GoldenAnswer.of(blank.prompt, tokens, first))
    return tuple(answers)


def blank_answers(architecture: Architecture, prompts: Sequence[Sequence[int]]) -> tuple[GoldenAnswer, ...]:
    """Return answers of zeros, which take as many bytes as those of `make_answers`, before there is a model to ask."""
    is_generative = architecture.kind == LANGUAGE_MODEL
    return tuple(
        GoldenAnswer(
            prompt=tuple(map(int, prompt[:PROMPT_TOKENS])),
            tokens=(0,) * (min(ANSWER_TOKENS, max(0, architecture.max_length - PROMPT_TOKENS)) if is_generative else 0),
            units=(0,) * min(LOGITS, architecture.outputs),
            exponent=0,
        )
        for prompt in prompts
    )


def read_answer(session: Session, answer: GoldenAnswer) -> npt.NDArray[np.float32]:
    """Have a model read a prompt at once and then the answer's tokens one by one, as it does where it writes.

    Returns:
        Its logits before each of the tokens, (max(T, 1), outputs), float32.

    Raises:
        InferenceError: The answer does not fit the model.
    """
    logits, cache = session.run(np.array([answer.prompt], dtype=np.int64))
    rows = [logits[0, -1]]
    for token in answer.tokens[:-1]:
        logits, cache = session.run(np.array([[token]], dtype=np.int64), cache)
        rows.append(logits[0, -1])
    return np.stack(rows)
