"""A light model as a release on disk: its graphs, its configuration, its tokenizer, and the bytes of them all."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from transformers import PreTrainedModel

from fedglm.autoglm.data.tokenizer import is_byte_tokenizer
from fedglm.autoglm.light.device.phases import PhaseFormats
from fedglm.autoglm.light.graph.formats import choose_formats, name_kernels
from fedglm.autoglm.light.graph.model import build_skeleton
from fedglm.autoglm.light.release.writer import ReleaseSize, compose_files, write_light_release
from fedglm.autoglm.light.search.pipeline import LightModel, Source
from fedglm.autoglm.light.search.tokens import map_tokens
from fedglm.autoglm.tasks.task import Task
from fedglm.autoglm.tasks.text import TextTask
from fedglm.inference.release.golden import GoldenAnswer
from fedglm.inference.release.manifest import Facts
from fedglm.inference.release.trust import SIGNATURE_FILE_BYTES, Signer
from fedglm.inference.runtime.architecture import read_architecture
from fedglm.inference.runtime.filled_graph import EXACT_ACTIVATIONS
from fedglm.inference.runtime.phased_session import DECODE, PREFILL, open_session
from fedglm.inference.validation.answers import blank_answers, make_answers
from fedglm.inference.weights.model import NumpyModel

_CONFIG_KEYS: Final = (
    *("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps"),
    *("rope_parameters", "attention_bias", "tie_word_embeddings", "id2label", "label2id", "pad_token_id"),
    *("bos_token_id", "eos_token_id", "hidden_act", "fedglm_layers"),
)
"""What determines a GLM; the rest of a configuration of transformers concerns training, or is a default."""

_PROMPTS: Final = 3  # of the golden answers


def to_numpy(light: LightModel) -> NumpyModel:
    """Return a light model as the runtime takes it, with the keys of the configuration that determine it."""
    model = light.quantized.model
    return NumpyModel(tensors=model.tensors, config=_select_keys(model.config), task=model.task)


def dense_to_numpy(model: PreTrainedModel, task: Task) -> NumpyModel:
    """Return a model in float32 as the runtime takes it, for comparison."""
    tensors = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    config = json.loads(model.config.to_json_string())
    return NumpyModel(tensors=tensors, config=_select_keys(config), task=json.loads(task.to_json()))


def _select_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in _CONFIG_KEYS if config.get(key) is not None}


def build_skeletons(model: NumpyModel, formats: PhaseFormats) -> dict[str, bytes]:
    """Write the graphs of a model: one for both phases where both hold each tensor in the same format."""
    decode, prefill = (choose_formats(model.tensors, model.config, kind) for kind in (formats.decode, formats.prefill))
    graphs = {DECODE: build_skeleton(model.config, decode)}
    if prefill != decode:
        graphs[PREFILL] = build_skeleton(model.config, prefill)
    return graphs


def name_phases(model: NumpyModel, formats: PhaseFormats) -> dict[str, str]:
    """Return the kernels of each phase's graph in words (`name_kernels`): INT8 codes run in INT8, whatever is asked."""
    return {
        phase: name_kernels(choose_formats(model.tensors, model.config, kind))
        for phase, kind in ((PREFILL, formats.prefill), (DECODE, formats.decode))
    }


def choose_prompts(light: LightModel, source: Source) -> list[list[int]]:
    """Return the prompts of a release's golden answers: the beginnings of some public sequences, in its tokens."""
    few = source.text.held_out.select(np.arange(min(_PROMPTS, len(source.text.held_out))))
    mapped = map_tokens(few, source.task, light.vocabulary)
    rows = zip(mapped.input_ids.tolist(), mapped.lengths.tolist(), strict=True)
    return [ids[:length] for ids, length in rows if length]


@dataclass(frozen=True, eq=False, kw_only=True)
class Package:
    """A light model with all that its release holds.

    Attributes:
        light: The light model.
        facts: What is known of it.
        reference_parameters: Number of parameters of the dense model, a tied output layer counted once.
        prompts: Ids of the public prompts that its golden answers are to.
        formats: Formats of its graphs.
    """

    light: LightModel
    facts: Facts
    reference_parameters: int
    prompts: Sequence[Sequence[int]]
    formats: PhaseFormats

    def write(self, folder: Path, signing_key: Signer | None) -> ReleaseSize:
        """Write the release, unsigned without a key.

        Raises:
            ModelError, InferenceError: As `write_light_release`.
            StorageError: The folder cannot be written.
        """
        with self._arguments(answered=True) as arguments:
            return write_light_release(folder, **arguments, signing_key=signing_key)

    def measure(self) -> int:
        """Return the bytes of the release when signed, without writing it or asking the model."""
        with self._arguments(answered=False) as arguments:
            files = compose_files(**arguments, signing_key=None)
        return sum(map(len, files.values())) + SIGNATURE_FILE_BYTES

    @contextmanager
    def _arguments(self, *, answered: bool) -> Iterator[dict[str, Any]]:
        model = to_numpy(self.light)
        skeletons = build_skeletons(model, self.formats)
        if answered:
            golden = answer_prompts(model, skeletons, self.prompts)
        else:
            golden = blank_answers(read_architecture(model.config), self.prompts)
        with tempfile.TemporaryDirectory(prefix="fedglm-tokenizer-") as scratch:
            yield {
                "model": model,
                "skeletons": skeletons,
                "tokenizer": _save_tokenizer(self.light, Path(scratch)),
                "facts": self.facts,
                "reference_parameters": self.reference_parameters,
                "golden": golden,
            }


def answer_prompts(
    model: NumpyModel, skeletons: Mapping[str, bytes], prompts: Sequence[Sequence[int]]
) -> tuple[GoldenAnswer, ...]:
    """Have a light model answer prompts, by the runtime and in the precision of a node that asks it again."""
    session = open_session(skeletons, model.tensors, model.config, accuracy_level=EXACT_ACTIVATIONS)
    return make_answers(session, read_architecture(model.config), prompts)


def _save_tokenizer(light: LightModel, folder: Path) -> Path | None:
    task: Any = light.task
    if not isinstance(task, TextTask) or task.tokenizer is None or is_byte_tokenizer(task.tokenizer):
        return None
    task.save_tokenizer(folder)
    return folder
