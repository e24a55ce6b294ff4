"""A model in use: it continues texts, or classifies rows; the same for a light release and for what torch runs."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, overload

from fedglm.core.processes.cores import count_cores
from fedglm.inference.errors import InferenceError
from fedglm.inference.generation.generator import Answer, TextGenerator
from fedglm.inference.generation.sampling import Sampling
from fedglm.inference.inputs.model_inputs import DEFAULT_TEXT_FIELD, ModelInputs, Row
from fedglm.inference.inputs.tokenizer import Encoded
from fedglm.inference.prediction import Prediction, RowClassifier
from fedglm.inference.runtime.session import Session

if TYPE_CHECKING:  # imported by whoever batches alone: others start faster without
    from fedglm.inference.batching.batcher import Batcher
    from fedglm.inference.batching.costs import BatchCosts
    from fedglm.inference.batching.settings import BatchingSettings

DEFAULT_MAX_LENGTH: Final = 50
DEFAULT_CACHE_BYTES: Final = 2**23
"""Bound of what is kept: of glm-0.5m some thousand answers of 50 tokens, and the keys and values of 2,700 tokens."""


class LiteModel:
    """A model in use, for one thread at a time, or with `batching` for any number.

        model = LiteModel.from_pretrained("release")
        model.generate("Federated learning", max_length=50)
        model.predict([{"age": 61, "pressure": 140}])

    Args:
        session: The model.
        inputs: Makes tokens of what it is given.
        facts: What is known of it, for `info`.
        cache_bytes: Bound of what is kept, in bytes: answers, for texts and rows that come again, and in half of it
            keys and values, for texts that begin as others; 0 keeps nothing.
        batching: Whether, or how, what several threads ask is batched; such a model is to be closed.
        costs: Latencies of the model on this device; None has them measured where they are needed.

    Attributes:
        inputs: Makes tokens of what it is given.
        cache_bytes: Bound of what is kept, in bytes.

    Raises:
        InferenceError: The model's outputs do not fit its task.
    """

    def __init__(
        self,
        session: Session,
        inputs: ModelInputs,
        *,
        facts: Mapping[str, Any],
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        batching: bool | BatchingSettings = False,
        costs: BatchCosts | None = None,
    ) -> None:
        self.inputs, self.cache_bytes = inputs, cache_bytes
        self._session, self._facts, self._costs = session, dict(facts), costs
        make = TextGenerator if inputs.task.is_generative else RowClassifier
        self._use: TextGenerator | RowClassifier = make(session, inputs, cache_bytes=cache_bytes)
        self._batcher: Batcher | None = None
        if batching:
            from fedglm.inference.batching.shared_use import share_session

            settings = None if batching is True else batching
            self._batcher, self._use = share_session(session, inputs, settings, costs=costs, cache_bytes=cache_bytes)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        keys: Iterable[str] = (),
        threads: int = 1,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        batching: bool | BatchingSettings = False,
        device: str | Path | None = None,
    ) -> Self:
        """Open a light release; torch is not needed.

        Args:
            folder: Folder of the release.
            keys: Public keys, of 64 digits each, of those whose signature is enough. Without any, a release is opened
                whoever made it, as a folder of one's own; `info` then says that it is not verified.
            threads: Threads that a run may use.
            cache_bytes: Bound of what is kept, in bytes; 0 keeps nothing.
            batching: Whether, or how, what several threads ask is batched; such a model is to be closed.
            device: File of this device, by ``fedglm device probe``, whose latencies say which batches pay; None has
                them measured where they are needed.

        Raises:
            InferenceError: The folder holds no light release, or one that is damaged or signed by nobody trusted; or
                the device's file cannot be used.
        """
        from fedglm.inference.batching.settings import bound_runs
        from fedglm.inference.opening import open_light  # onnxruntime is needed from here on

        path = None if device is None else Path(device).expanduser()
        opened = open_light(Path(folder).expanduser(), keys=keys, threads=threads, device=path)
        return cls(
            opened.session,
            opened.inputs,
            facts=opened.facts,
            cache_bytes=cache_bytes,
            batching=bound_runs(batching, max(1, count_cores() // threads)),
            costs=opened.costs,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End batching, when all that was asked is answered; a model that does not batch has nothing to end."""
        if self._batcher is not None:
            self._batcher.close()

    def latency_ms(self) -> float:
        """Return how long the model takes for one more token of a text, or for one row of the length that it reads.

        Returns:
            Milliseconds, by the device's file; without one as measured now, at best.
        """
        task = self.inputs.task
        tokens = 1 if task.is_generative else task.length
        if self._costs is not None:
            return self._costs.milliseconds(1, tokens)
        from fedglm.inference.batching.measured_costs import measure_costs

        session = self._session if self._batcher is None else self._batcher
        return measure_costs(session, batches=(1,), lengths=(tokens,)).milliseconds(1, tokens)

    def info(self) -> dict[str, Any]:
        """Return what is known of the model: its task, classes or features, limits, runtime, origin and what it keeps.

        `kept` counts answers and prefixes, their bytes, and how often they served; `batching`, of a model that batches,
        has the counts of `BatcherCounts`.
        """
        task = self.inputs.task
        known: dict[str, Any] = {"task": task.kind, "max_length": self._session.max_length}
        if task.labels:
            known |= {"labels": list(task.labels), "tokens_read": task.length}
        if self.inputs.table is not None:
            known["features"] = list(self.inputs.table.names)
        known |= {"vocab_size": self._session.vocab_size, "kept": dict(self._use.kept())}
        if self._batcher is not None:
            known["batching"] = asdict(self._batcher.counts())
        return known | self._facts

    @overload
    def generate(self, text: str, max_length: int = ..., **sampling: Any) -> str: ...
    @overload
    def generate(self, text: Sequence[str], max_length: int = ..., **sampling: Any) -> list[str]: ...

    def generate(
        self, text: str | Sequence[str], max_length: int = DEFAULT_MAX_LENGTH, **sampling: Any
    ) -> str | list[str]:
        """Continue a text, or several together.

        Args:
            text: The text, or several.
            max_length: Maximum number of tokens to add; the text itself does not count.
            sampling: `temperature`, `top_k`, `top_p` and `seed` of `Sampling`; by default the likeliest token is taken.

        Returns:
            What was added, without the text itself; of several texts, in their order.

        Raises:
            InferenceError: The model classifies, a text is too long for it, or a setting is out of its range.
        """
        if isinstance(text, str):
            return self.answer([text], max_length, **sampling)[0].text
        return [answer.text for answer in self.answer(text, max_length, **sampling)]

    def answer(self, texts: Sequence[str], max_length: int = DEFAULT_MAX_LENGTH, **sampling: Any) -> list[Answer]:
        """Continue texts as `generate` does, and return also the tokens, and why each text ended."""
        return self._require_generator().answer(texts, max_length, Sampling.of(**sampling))

    def stream(self, text: str, max_length: int = DEFAULT_MAX_LENGTH, **sampling: Any) -> Generator[str, None, Answer]:
        """Continue a text, and yield each piece as it is known; no piece ends within a character.

        All pieces together are what `generate` returns; the generator's own value is the whole `Answer`.

        Raises:
            InferenceError: As by `generate`, some at the first piece.
        """
        return self._require_generator().stream(text, max_length, Sampling.of(**sampling))

    def predict(self, rows: Sequence[Row], *, text_field: str = DEFAULT_TEXT_FIELD) -> list[Prediction]:
        """Classify rows.

        Args:
            rows: Texts, or mappings with a text; or rows of a table as mappings by feature, or as lists of numbers in
                the features' order. None, an empty string and NaN are missing values of a table.
            text_field: Name of the text in a mapping.

        Raises:
            InferenceError: The model generates texts, or a row cannot be used; the message has its number, from 1.
        """
        return self._require_classifier().classify(self.encode(rows, text_field))

    def encode(self, rows: Sequence[Row], text_field: str = DEFAULT_TEXT_FIELD) -> list[Encoded]:
        """Encode rows for `classify`, as `predict` does.

        Raises:
            InferenceError: A row cannot be used; the message has its number, from 1.
        """
        encoded = []
        for number, row in enumerate(rows, 1):
            try:
                encoded.append(self.inputs.encode_row(row, text_field))
            except InferenceError as exc:
                raise InferenceError(f"row {number}: {exc}") from exc
        return encoded

    def classify(self, rows: Sequence[Encoded]) -> list[Prediction]:
        """Classify rows that `inputs.encode_row` has encoded.

        Raises:
            InferenceError: The model generates texts.
        """
        return self._require_classifier().classify(rows)

    def _require_generator(self) -> TextGenerator:
        if not isinstance(self._use, TextGenerator):
            raise InferenceError(f"the model is for {self.inputs.task.kind} and generates no text: use predict")
        return self._use

    def _require_classifier(self) -> RowClassifier:
        if not isinstance(self._use, RowClassifier):
            raise InferenceError("the model is a language model and has no classes to predict: use generate")
        return self._use
