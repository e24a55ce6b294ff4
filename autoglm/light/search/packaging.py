"""A light model as a release on disk: its graphs, its configuration, its tokenizer, and the bytes of them all."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedModel

from fedglm.autoglm.data.tokenizer import is_byte_tokenizer
from fedglm.autoglm.light.graph.formats import GraphFormat, choose_formats
from fedglm.autoglm.light.graph.model import build_skeleton
from fedglm.autoglm.light.release.writer import ReleaseSize, write_light_release
from fedglm.autoglm.light.search.pipeline import LightModel
from fedglm.autoglm.tasks.task import Task
from fedglm.autoglm.tasks.text import TextTask
from fedglm.inference.release.manifest import Facts
from fedglm.inference.release.trust import Signer
from fedglm.inference.runtime.phased_session import DECODE, PREFILL
from fedglm.inference.weights.model import NumpyModel

_CONFIG_KEYS: Final = (
    *("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps"),
    *("rope_parameters", "attention_bias", "tie_word_embeddings", "id2label", "label2id", "pad_token_id"),
    *("bos_token_id", "eos_token_id", "hidden_act", "fedglm_layers"),
)
"""What determines a GLM; the rest of a configuration of transformers concerns training, or is a default."""


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


def build_skeletons(model: NumpyModel, *, prefill: GraphFormat, decode: GraphFormat) -> dict[str, bytes]:
    """Write the graphs of a model: one for both phases where they have the same format."""
    graphs = {DECODE: build_skeleton(model.config, choose_formats(model.tensors, model.config, decode))}
    if prefill != decode:
        graphs[PREFILL] = build_skeleton(model.config, choose_formats(model.tensors, model.config, prefill))
    return graphs


def write_release(
    folder: Path,
    light: LightModel,
    model: NumpyModel,
    skeletons: Mapping[str, bytes],
    *,
    facts: Facts,
    reference_parameters: int,
    signing_key: Signer | None,
) -> ReleaseSize:
    """Write the release of a light model.

    Args:
        folder: Its folder.
        light: The light model, for its tokenizer.
        model: The same as `to_numpy` returned it.
        skeletons: Its graphs.
        facts: What is known of it.
        reference_parameters: Number of parameters of the dense model, a tied output layer counted once.
        signing_key: Key that signs it; None leaves it unsigned.

    Raises:
        ModelError, InferenceError: As `write_light_release`.
        StorageError: The folder cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="fedglm-tokenizer-") as scratch:
        tokenizer = _save_tokenizer(light, Path(scratch))
        return write_light_release(
            folder,
            model,
            skeletons=skeletons,
            tokenizer=tokenizer,
            facts=facts,
            reference_parameters=reference_parameters,
            signing_key=signing_key,
        )


def _save_tokenizer(light: LightModel, folder: Path) -> Path | None:
    task: Any = light.task
    if not isinstance(task, TextTask) or task.tokenizer is None or is_byte_tokenizer(task.tokenizer):
        return None
    task.save_tokenizer(folder)
    return folder
