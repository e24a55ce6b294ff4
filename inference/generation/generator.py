"""Texts continued by a language model: encoded, decoded as they come, and kept where the same text would come again.

Of a text that is new as a whole, but not from its beginning, the keys and values of the beginning are kept as well.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedglm.inference.answer_cache import AnswerCache
from fedglm.inference.errors import InferenceError
from fedglm.inference.generation.decoding import Event, Stop, decode
from fedglm.inference.generation.sampling import Sampling
from fedglm.inference.inputs.model_inputs import ModelInputs
from fedglm.inference.inputs.tokenizer import Ids, Tokenizer, decode_all
from fedglm.inference.runtime.prefix_cache import PrefixCache
from fedglm.inference.runtime.session import Session

_ENTRY_BYTES = 500  # of an answer in memory, besides its characters and tokens


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A generated text.

    Attributes:
        text: The text, without the prompt.
        tokens: Its token ids, without an end token.
        stop: Why it ended.
    """

    text: str
    tokens: tuple[int, ...]
    stop: Stop


class TextGenerator:
    """Continues texts.

    Args:
        session: A language model.
        inputs: Its inputs.
        cache_bytes: Bound of what is kept, in bytes: half for answers, half for keys and values of texts; 0 keeps none.

    Raises:
        InferenceError: The model has no tokenizer, or fewer outputs than that has tokens.
    """

    def __init__(self, session: Session, inputs: ModelInputs, *, cache_bytes: int) -> None:
        if inputs.tokenizer is None:
            raise InferenceError("a language model needs a tokenizer")
        self._tokenizer: Tokenizer = inputs.tokenizer
        if session.outputs < self._tokenizer.vocab_size:
            count = f"{session.outputs} outputs for {self._tokenizer.vocab_size} tokens"
            raise InferenceError(f"the tokenizer is not the model's own: {count}")
        self._session, self._inputs = session, inputs
        self._kept: AnswerCache[Answer] = AnswerCache(cache_bytes // 2)
        self._prefixes = PrefixCache(cache_bytes // 2)

    def kept(self) -> Mapping[str, int]:
        """Return how much is kept, and how often it served: answers as a whole, and tokens that were not read again."""
        return {
            "answers": len(self._kept),
            "answer_bytes": self._kept.nbytes,
            "answers_reused": self._kept.reused,
            "prefixes": len(self._prefixes),
            "prefix_bytes": self._prefixes.nbytes,
            "tokens_reused": self._prefixes.reused,
        }

    def answer(self, texts: Sequence[str], max_tokens: int, sampling: Sampling) -> list[Answer]:
        """Continue texts, those together that are not kept.

        Raises:
            InferenceError: A text is too long for the model, or has no tokens.
        """
        prompts = [self._inputs.encode_prompt(text) for text in texts]
        keys = [_make_key(ids, max_tokens, sampling, row) for row, ids in enumerate(prompts)]
        answers = [self._find(key, sampling) for key in keys]
        new = [row for row, answer in enumerate(answers) if answer is None]
        generators = sampling.generators(len(texts))
        tokens: list[list[int]] = [[] for _ in new]
        chosen = [prompts[row] for row in new]
        for event in self._decode(chosen, max_tokens, sampling, [generators[row] for row in new], at_once=False):
            if event.token is not None:
                tokens[event.row].append(event.token)
            elif event.stop is not None:
                row = new[event.row]
                answers[row] = self._finish(keys[row], tokens[event.row], event.stop, sampling)
        return [answer for answer in answers if answer is not None]

    def stream(self, text: str, max_tokens: int, sampling: Sampling) -> Generator[str, None, Answer]:
        """Continue a text; yield each piece as it is known, none of which ends within a character, return the answer.

        Raises:
            InferenceError: As by `answer`, at the first piece.
        """
        prompt = self._inputs.encode_prompt(text)
        key = _make_key(prompt, max_tokens, sampling, 0)
        if (kept := self._find(key, sampling)) is not None:
            yield kept.text
            return kept
        pieces, tokens, stop = self._tokenizer.stream(), list[int](), Stop.END
        for event in self._decode([prompt], max_tokens, sampling, sampling.generators(1), at_once=True):
            if event.token is not None:
                tokens.append(event.token)
                if piece := pieces.feed(event.token):
                    yield piece
            elif event.stop is not None:
                stop = event.stop
        if piece := pieces.finish():
            yield piece
        return self._finish(key, tokens, stop, sampling)

    def _decode(
        self,
        prompts: Sequence[Ids],
        max_tokens: int,
        sampling: Sampling,
        generators: Sequence[np.random.Generator | None],
        *,
        at_once: bool,  # noqa: ARG002 - here each token is told at once anyway
    ) -> Iterator[Event]:
        return decode(
            self._session,
            prompts,
            sampling=sampling,
            generators=generators,
            max_tokens=max_tokens,
            end_ids=self._inputs.end_ids,
            pad_id=self._inputs.task.pad_id,
            vocab_size=self._tokenizer.vocab_size,
            prefixes=self._prefixes,
        )

    def _find(self, key: tuple[object, ...], sampling: Sampling) -> Answer | None:
        return self._kept.get(key) if sampling.is_repeatable else None

    def _finish(self, key: tuple[object, ...], tokens: list[int], stop: Stop, sampling: Sampling) -> Answer:
        answer = Answer(text=decode_all(self._tokenizer, tokens), tokens=tuple(tokens), stop=stop)
        if sampling.is_repeatable:
            ids = key[0]
            size = len(ids) if isinstance(ids, bytes) else 0
            # A token is an int object of 28 bytes behind a pointer; a character takes at most 4.
            self._kept.put(key, answer, size + 4 * len(answer.text) + 36 * len(tokens) + _ENTRY_BYTES)
        return answer


def _make_key(prompt: Ids, max_tokens: int, sampling: Sampling, row: int) -> tuple[object, ...]:
    """Make the key of an answer; drawn tokens also depend on which of several texts it is."""
    return (prompt.tobytes(), max_tokens, sampling, row if sampling.temperature else 0)
