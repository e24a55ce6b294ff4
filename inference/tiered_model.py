"""Several releases of one model, of which each call takes the best that is fast enough now."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, overload

from fedglm.inference.errors import InferenceError
from fedglm.inference.generation.generator import Answer
from fedglm.inference.inputs.model_inputs import DEFAULT_TEXT_FIELD, Row
from fedglm.inference.model import DEFAULT_MAX_LENGTH, LiteModel
from fedglm.inference.prediction import Prediction
from fedglm.inference.tiers import Choice, Tier, TierChooser

Each = TypeVar("Each", Answer, Prediction)


@dataclass(frozen=True, kw_only=True)
class TieredAnswer(Generic[Each]):
    """Answers of one call, and who gave them.

    Attributes:
        answers: Answers to the texts, or predictions of the rows, in their order.
        choice: The tier, its expected latency, whether that is within the budget, and why it was chosen.
        measured_ms: What a token, or a row, took, in ms; None where there was none.
    """

    answers: list[Each]
    choice: Choice
    measured_ms: float | None

    @property
    def tier(self) -> str:
        """Name of the tier."""
        return self.choice.tier.name

    @property
    def reason(self) -> str:
        """Why it was chosen, as a sentence."""
        return self.choice.reason


class TieredModel:
    """Several releases of one model under a latency budget; each call takes the best tier that is expected to fit.

        with TieredModel.open(["int8", "int4"], budget_ms=5) as model:
            answer = model.predict([{"age": 61, "pressure": 140}])
            answer.answers[0].label, answer.tier, answer.reason

    What is expected is learned from each call, so that a loaded device steps down and up again (`TierChooser`). Tiers
    keep no answers: what comes from memory would say that a tier is fast. It is for as many threads as its models are.

    Args:
        models: The tiers by name, the best first; all for one use, and of the same classes; opened to keep no answers.
        budget_ms: What a token of a text may take, its share of reading the prompt included; or a row of those of a
            call; in ms.

    Raises:
        InferenceError: There is no tier, two are of different uses or classes, one keeps answers, or the budget is not
            above 0.
    """

    def __init__(self, models: Mapping[str, LiteModel], *, budget_ms: float) -> None:
        tasks = [model.inputs.task for model in models.values()]
        for name, task in zip(models, tasks, strict=True):
            if task.kind != tasks[0].kind or task.labels != tasks[0].labels:
                raise InferenceError(f"tier {name} is not of the same task and classes as the first: leave it out")
            if models[name].cache_bytes:
                raise InferenceError(f"tier {name} keeps answers, whose times tell nothing: open it with cache_bytes=0")
        # Best first, so that quality falls; measured one after the other, as nothing else is known of this device.
        tiers = [
            Tier(name=name, quality=-number, predicted_ms=model.latency_ms())
            for number, (name, model) in enumerate(models.items())
        ]
        self._models, self._budget_ms = dict(models), budget_ms
        self._chooser = TierChooser(tiers, budget_ms=budget_ms)

    @classmethod
    def open(
        cls,
        folders: Sequence[str | Path],
        *,
        budget_ms: float,
        keys: Iterable[str] = (),
        threads: int = 1,
        device: str | Path | None = None,
        batching: bool = False,
    ) -> Self:
        """Open light releases as tiers; all of them are in memory from then on.

        Args:
            folders: Folders of the releases, the best first; tiers are called as they.
            budget_ms: What a token of a text may take, or a row of those of a call, in ms.
            keys: Public keys, of 64 digits each, of those whose signature is enough.
            threads: Threads that a run may use.
            device: File of this device, by ``fedglm device probe``, whose latencies are what is expected at first; None
                has them measured.
            batching: Whether what several threads ask is batched.

        Raises:
            InferenceError: As by `LiteModel.from_pretrained`, or a folder is named twice.
        """
        keys, models = list(keys), dict[str, LiteModel]()
        try:
            for folder in folders:
                if str(folder) in models:
                    raise InferenceError(f"{folder} is named twice: a tier is a release of its own")
                models[str(folder)] = LiteModel.from_pretrained(
                    folder, keys=keys, threads=threads, device=device, batching=batching, cache_bytes=0
                )
            return cls(models, budget_ms=budget_ms)
        except BaseException:
            _close(models)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all tiers."""
        _close(self._models)

    @overload
    def generate(self, text: str, max_length: int = ..., **sampling: Any) -> str: ...
    @overload
    def generate(self, text: Sequence[str], max_length: int = ..., **sampling: Any) -> list[str]: ...

    def generate(
        self, text: str | Sequence[str], max_length: int = DEFAULT_MAX_LENGTH, **sampling: Any
    ) -> str | list[str]:
        """Continue a text, or several, as `LiteModel.generate` does; `answer` also says by which tier."""
        if isinstance(text, str):
            return self.answer([text], max_length, **sampling).answers[0].text
        return [answer.text for answer in self.answer(text, max_length, **sampling).answers]

    def answer(
        self, texts: Sequence[str], max_length: int = DEFAULT_MAX_LENGTH, **sampling: Any
    ) -> TieredAnswer[Answer]:
        """Continue texts as `LiteModel.answer` does, by the tier that is chosen now.

        Raises:
            InferenceError: As by `LiteModel.answer`.
        """
        choice = self._chooser.choose()
        start = time.perf_counter()
        answers = self._models[choice.tier.name].answer(texts, max_length, **sampling)
        # Texts of a call are written together, so that a token of each takes as long as one.
        return self._record(choice, answers, start, max((len(answer.tokens) for answer in answers), default=0))

    def predict(self, rows: Sequence[Row], *, text_field: str = DEFAULT_TEXT_FIELD) -> TieredAnswer[Prediction]:
        """Classify rows as `LiteModel.predict` does, by the tier that is chosen now.

        Raises:
            InferenceError: As by `LiteModel.predict`.
        """
        choice = self._chooser.choose()
        start = time.perf_counter()
        model = self._models[choice.tier.name]
        encoded = model.encode(rows, text_field)
        answers = model.classify(encoded)
        # Equal rows of a call are read once.
        return self._record(choice, answers, start, len({row.ids.tobytes() for row in encoded}))

    def info(self) -> dict[str, Any]:
        """Return the budget, and of each tier, the best first, what is expected of it now and what is known of it."""
        expected = self._chooser.expected_ms()
        tiers = {name: {"expected_ms": expected[name], **model.info()} for name, model in self._models.items()}
        return {"budget_ms": self._budget_ms, "tiers": tiers}

    def _record(self, choice: Choice, answers: list[Each], start: float, count: int) -> TieredAnswer[Each]:
        measured = (time.perf_counter() - start) * 1000 / count if count else None
        if measured:
            self._chooser.record(choice.tier.name, measured)
        return TieredAnswer(answers=answers, choice=choice, measured_ms=measured)


def _close(models: Mapping[str, LiteModel]) -> None:
    for model in models.values():
        model.close()
