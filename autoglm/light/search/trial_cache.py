"""What a search trains, taken from earlier searches where the very same was made: to the bit what would come again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from fedglm.autoglm.light.cache.identity import hash_examples, hash_machine, hash_model, hash_values
from fedglm.autoglm.light.cache.model_files import pack_model, pack_quantized, unpack_model, unpack_quantized
from fedglm.autoglm.light.cache.store import Entry, Store
from fedglm.autoglm.light.distillation.settings import DistillationSettings
from fedglm.autoglm.light.plan.recipe import Recipe
from fedglm.autoglm.light.search.measures import Quality
from fedglm.autoglm.light.search.pipeline import LightModel, Source, cut_source

Made = TypeVar("Made")
_DAMAGED = (ValueError, KeyError, TypeError)
"""What the content of an entry can raise that has its hashes and is not what it should be."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredModel:
    """A light model with its figures.

    Attributes:
        light: The model.
        quality: Figures on the sequences that measure.
        held_out_loss: Loss on the sequences that choose.
    """

    light: LightModel
    quality: Quality
    held_out_loss: float


class TrialCache:
    """Takes what was made before from a store, and keeps what is made whole; without a store all is made.

    A key is the hash of all that decides the bits: the model that a training starts from with its tokenizer, all
    sequences, settings, seed, and what `identity.hash_machine` lists. What was interrupted is not kept.

    Args:
        store: Where it is kept.

    Attributes:
        found: Number of trained models that came from the store.
        made: Number of those that were made.
    """

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        self._sources = WeakKeyDictionary[Source, str]()
        self.found = self.made = 0

    def train(
        self,
        source: Source,
        settings: DistillationSettings,
        seed: int,
        make: Callable[[], tuple[PreTrainedModel, bool]],
    ) -> PreTrainedModel:
        """Return the source's model as trained without a teacher.

        Args:
            source: The model and its text.
            settings: Settings of the training.
            seed: Its seed.
            make: Trains it; returns it, and whether the training was interrupted.
        """
        return self._get(
            self._key("trained", source, settings=settings.model_dump(mode="json"), seed=seed),
            make,
            pack=lambda model: pack_model(model, {}),
            unpack=lambda entry: unpack_model(entry, source.model),
        )

    def make_light(
        self, source: Source, recipe: Recipe, seed: int, make: Callable[[], MeasuredModel], **settings: Any
    ) -> MeasuredModel:
        """Return what a recipe makes of a source.

        Args:
            source: The model and its text.
            recipe: The recipe; its name decides nothing.
            seed: Seed of its trainings.
            make: Makes and measures it.
            settings: Plain values that decide the result beside these.
        """

        def unpack(entry: Entry) -> MeasuredModel:
            vocabulary = cut_source(source, recipe)
            light = LightModel(
                recipe=recipe,
                quantized=unpack_quantized(entry, source.model),
                task=source.task if vocabulary is None else vocabulary.task,
                vocabulary=vocabulary,
            )
            figures = entry.facts
            return MeasuredModel(
                light=light, quality=Quality(**figures["quality"]), held_out_loss=figures["held_out_loss"]
            )

        def pack(made: MeasuredModel) -> Entry:
            figures = {"quality": asdict(made.quality), "held_out_loss": made.held_out_loss}
            return pack_quantized(made.light.quantized, figures)

        def make_whole() -> tuple[MeasuredModel, bool]:
            made = make()
            return made, made.light.interrupted

        decides = recipe.model_dump(mode="json", exclude={"name"})
        return self._get(self._key("light", source, recipe=decides, seed=seed, **settings), make_whole, pack, unpack)

    def make_facts(
        self, kind: str, source: Source, make: Callable[[], tuple[dict[str, Any], bool]], **settings: Any
    ) -> dict[str, Any]:
        """Return plain figures of a model that is trained for them alone.

        Args:
            kind: Which.
            source: The model that it is made of, and the text.
            make: Makes it; returns the figures, and whether a training was interrupted.
            settings: Plain values that decide the result beside the source.
        """
        key = self._key(kind, source, **settings)
        return self._get(key, make, pack=lambda facts: Entry(facts=facts), unpack=lambda entry: entry.facts)

    def measure(self, model: PreTrainedModel, source: Source, make: Callable[[], Quality]) -> Quality:
        """Return figures of a model on the sequences of a source that measure, against its dense model.

        Args:
            model: The model, for the source's own vocabulary.
            source: The dense model and the text.
            make: Measures it.
        """
        return self._get(
            self._key("measured", source, model=hash_model(model, source.task)),
            lambda: (make(), False),
            pack=lambda quality: Entry(facts=asdict(quality)),
            unpack=lambda entry: Quality(**entry.facts),
            counted=False,
        )

    def _get(
        self,
        key: str,
        make: Callable[[], tuple[Made, bool]],
        pack: Callable[[Made], Entry],
        unpack: Callable[[Entry], Made],
        *,
        counted: bool = True,
    ) -> Made:
        entry = None if self._store is None else self._store.load(key)
        if self._store is not None and entry is not None:
            try:
                found = unpack(entry)
            except _DAMAGED as exc:
                self._store.drop(key, str(exc))
            else:
                self.found += counted
                return found
        made, interrupted = make()
        self.made += counted
        if self._store is not None and not interrupted:
            self._store.save(key, pack(made))
        return made

    def _key(self, kind: str, source: Source, **settings: Any) -> str:
        if self._store is None:
            return ""  # nothing is looked up
        if source not in self._sources:
            self._sources[source] = hash_values(
                model=hash_model(source.model, source.task),
                text=hash_examples(source.text.train, source.text.held_out, source.test),
                machine=hash_machine(),
            )
        return hash_values(kind=kind, source=self._sources[source], **settings)
