"""A Llama in a folder of transformers: ``config.json``, safetensors, a tokenizer. Pickles are refused, not read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from fedglm.autoglm.data.tokenizer import check_model_folder, load_tokenizer
from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.models.importing.llama import EMBEDDING, LlamaShape
from fedglm.core.untrusted_files import check_regular, read_regular

_MAX_JSON: Final = 2**24
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_KINDS: Final = ("llama", "mistral", "qwen2")  # Qwen2 is a Llama with biases of query, key and value
_NO_SCALING: Final = ("default", None)


class FolderSource:
    """A Llama in a folder.

    Args:
        folder: The folder.

    Raises:
        ModelError: It holds no Llama, or only pickled weights, or is one that a GLM cannot represent.
    """

    rotates_neighbours = False

    def __init__(self, folder: Path) -> None:
        self._folder = check_model_folder(folder)
        self._config = _read_object(self._folder / "config.json")
        self._files: dict[str, Path] = {}
        sizes: dict[str, tuple[int, ...]] = {}
        for path in self._find_files():
            check_regular(path)
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118 # it is no mapping
                    # Older folders hold a buffer that follows from the configuration.
                    if not name.endswith(".rotary_emb.inv_freq"):
                        self._files[name], sizes[name] = path, tuple(file.get_slice(name).get_shape())
        self.sizes: Mapping[str, tuple[int, ...]] = sizes
        self.shape = self._read_shape()

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """Read one tensor, as float32."""
        with _opened(self._files[name]) as file:
            tensor: torch.Tensor = file.get_tensor(name)
        if not tensor.is_floating_point():
            raise ModelError(f"the tensor {name} is stored as {tensor.dtype}; floating-point weights are wanted")
        values: npt.NDArray[np.float32] = tensor.float().numpy()
        return values

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the folder's tokenizer."""
        return load_tokenizer(str(self._folder), append_end=False, length=self.shape.max_length)

    def _find_files(self) -> list[Path]:
        index = self._folder / _INDEX
        if index.is_file():
            listed = _read_object(index).get("weight_map")
            names = sorted({*listed.values()} if isinstance(listed, dict) else ())
            if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
                raise ModelError(f"{index.name} does not name files of the folder")
            paths = [self._folder / name for name in names]
        else:
            paths = [self._folder / _WEIGHTS]
        if lacking := [path.name for path in paths if path.suffix != ".safetensors" or not path.is_file()]:
            if any(path.suffix in _PICKLES for path in self._folder.iterdir()):
                raise ModelError("its weights are pickled, and reading a pickle runs what is in it; take safetensors")
            raise ModelError(f"its weights, {lacking[0]}, are not there")
        return paths

    def _read_shape(self) -> LlamaShape:
        config = self._config
        if (kind := config.get("model_type")) not in _KINDS:
            raise ModelError(f"its model_type is {kind!r:.40}; {', '.join(_KINDS)} become a GLM")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise ModelError("its rope_parameters are no table")
        if (scaling := rope.get("rope_type", rope.get("type"))) not in _NO_SCALING:
            raise ModelError(f"it scales its rotary frequencies ({scaling!r:.40}), which a GLM here does not")
        if (activation := config.get("hidden_act", "silu")) != "silu":
            raise ModelError(f"its hidden_act is {activation!r:.40}, and a GLM has silu")
        if config.get("sliding_window") is not None and config.get("use_sliding_window", True):
            raise ModelError("its tokens see a window of the text, and those of a GLM all that stands before them")
        if EMBEDDING not in self.sizes:
            raise ModelError(f"it has no embedding ({EMBEDDING})")
        hidden, heads = self._get("hidden_size"), self._get("num_attention_heads")
        if not (type(hidden) is type(heads) is int and hidden > 0 and heads > 0):
            raise ModelError("its width or its number of heads is no positive number")
        head_dim = config.get("head_dim") or hidden // heads
        rotated = float(rope.get("partial_rotary_factor", 1.0))
        return LlamaShape(
            vocab_size=self._get("vocab_size"),
            hidden=hidden,
            intermediate=self._get("intermediate_size"),
            layers=self._get("num_hidden_layers"),
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            rotary_dim=int(head_dim * rotated) if 0 < rotated <= 1 else 0,
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
            norm_epsilon=float(self._get("rms_norm_eps")),
            max_length=self._get("max_position_embeddings"),
            tied=config.get("tie_word_embeddings", False) is True,
            attention_bias=kind == "qwen2" or config.get("attention_bias", False) is True,
        )

    def _get(self, key: str) -> Any:
        if key not in self._config:
            raise ModelError(f"its config.json has no {key}")
        return self._config[key]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_regular(path, _MAX_JSON))
    except (ValueError, RecursionError) as exc:
        raise ModelError(f"{path.name} is no JSON") from exc
    if not isinstance(found, dict):
        raise ModelError(f"{path.name} holds no table")
    return found


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as exc:
        raise ModelError(f"{path.name} is no safetensors file, or damaged ({exc})") from exc
