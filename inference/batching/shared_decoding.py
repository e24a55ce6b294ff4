"""Texts of one call, continued in a batcher beside those of others: each joins and leaves its runs at any token."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from fedglm.inference.batching.batcher import Batcher
from fedglm.inference.batching.requests import Answer
from fedglm.inference.errors import QueueFullError
from fedglm.inference.generation.decoding import MAX_BATCH, Event, Stop, check_prompts, count_left
from fedglm.inference.generation.prompts import MIN_REUSED
from fedglm.inference.generation.sampling import Sampling, choose_token
from fedglm.inference.inputs.tokenizer import Ids
from fedglm.inference.runtime.prefix_cache import PrefixCache


@dataclass(eq=False, kw_only=True)
class _Text:
    """A text under way; it chooses its tokens in the thread that runs the batches."""

    row: int
    prompt: Ids
    sampling: Sampling
    generator: np.random.Generator | None
    end_ids: AbstractSet[int]
    vocab_size: int
    left: int
    limit: Stop
    stop: Stop = Stop.END
    tokens: list[int] = field(default_factory=list)

    def choose(self, logits: npt.NDArray[np.float32]) -> int | None:
        token = choose_token(logits[: self.vocab_size], self.sampling, self.generator)
        if token in self.end_ids:
            return None
        self.tokens.append(token)
        if len(self.tokens) == self.left:
            self.stop = self.limit
            return None
        return token


def decode_shared(
    batcher: Batcher,
    prompts: Sequence[Ids],
    *,
    sampling: Sampling,
    generators: Sequence[np.random.Generator | None],
    max_tokens: int,
    end_ids: AbstractSet[int],
    vocab_size: int,
    prefixes: PrefixCache,
) -> Iterator[Event]:
    """Continue texts as `decode` does, each as a text of the batcher's own; whoever stops reading withdraws them.

    Tokens are told when their text has ended: to tell each at once would wake the calling thread for each.

    Args:
        batcher: The model.
        prompts: Ids of each text, (T,), int64.
        sampling: How tokens are chosen.
        generators: Source of the draws of each text.
        max_tokens: Maximum number of new tokens of each text.
        end_ids: Tokens that end a text; they are not yielded.
        vocab_size: Tokens from here on are never chosen.
        prefixes: Keys and values of earlier texts, to begin with, and where those of these are kept.

    Raises:
        InferenceError: A prompt is empty or longer than the model takes, or `max_tokens` is not positive.
        QueueFullError: As many requests wait as may, and none of them is of this call.
        BatcherClosedError: The batcher is closed.
    """
    check_prompts(prompts, max_tokens, batcher.max_length)
    ended: SimpleQueue[_Text] = SimpleQueue()
    waiting, under_way = deque(range(len(prompts))), dict[int, Future[Answer]]()

    def start(row: int) -> bool:
        """Start a text; False where it must wait until another of this call has ended."""
        prompt = prompts[row]
        left, limit = count_left(len(prompt), max_tokens, batcher.max_length)
        text = _Text(
            row=row,
            prompt=prompt,
            sampling=sampling,
            generator=generators[row],
            end_ids=end_ids,
            vocab_size=vocab_size,
            left=left,
            limit=limit,
        )
        known = prefixes.find(prompt, at_least=MIN_REUSED)
        unread = prompt[None, 0 if known is None else known.length :]
        try:
            future = batcher.decode(unread, text.choose, known)
        except QueueFullError:
            if not under_way:
                raise
            return False
        under_way[row] = future
        future.add_done_callback(lambda _: ended.put(text))
        return True

    try:
        while waiting or under_way:
            while waiting and len(under_way) < MAX_BATCH and start(waiting[0]):
                waiting.popleft()
            text = ended.get()
            _, cache = under_way.pop(text.row).result()
            read = np.array([*text.prompt.tolist(), *text.tokens], dtype=np.int64)[: cache.length]
            prefixes.add(read, cache)
            yield from (Event(text.row, token, None) for token in text.tokens)
            yield Event(text.row, None, text.stop)
    finally:
        for future in under_way.values():
            future.cancel()
