"""The shape of a GLM, layer by layer, and what it costs in parameters and bytes.

A GLM of transformers has one width for all its layers. Where they differ, the configuration keeps the greatest widths
and `LAYERS_KEY` lists those of each layer (``[{"intermediate_size", "num_key_value_heads", "num_attention_heads"}]``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedglm.autoglm.light.pruning.errors import PruningError

LAYERS_KEY = "fedglm_layers"
"""Key of a configuration that lists the widths of each layer where they differ."""


class StorageBits(BaseModel):
    """Bits that a stored number takes, scales included, by the kind of its tensor.

    Attributes:
        embedding: Of the embedding and of an output layer.
        matrix: Of the linear layers of attention and FFN.
        vector: Of norms and biases.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding: float = Field(default=32.0, gt=0, le=64)
    matrix: float = Field(default=32.0, gt=0, le=64)
    vector: float = Field(default=32.0, gt=0, le=64)


class LayerShape(BaseModel):
    """Widths of a layer.

    Attributes:
        intermediate_size: Number of FFN channels.
        num_key_value_heads: Number of KV groups: a key-value head with its query heads.
        num_attention_heads: Number of query heads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    intermediate_size: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)


class ModelShape(BaseModel):
    """Everything that determines the number of a GLM's parameters.

    Attributes:
        hidden: Width of the residual stream.
        head_dim: Width of a head.
        queries_per_group: Number of query heads of a KV group, the same in all layers.
        attention_bias: Whether query, key and value have a bias.
        vocabulary: Number of embedding rows.
        outputs: Number of rows of an output layer of its own; 0 where it is the embedding.
        layers: The layers' widths.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: int
    head_dim: int
    queries_per_group: int
    attention_bias: bool
    vocabulary: int
    outputs: int
    layers: tuple[LayerShape, ...] = Field(min_length=1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, classifier: bool) -> Self:
        """Read the shape from a transformers ``config.json`` of a GLM.

        Args:
            config: The configuration as a dict.
            classifier: Whether the output layer has a row per class; else it has one per token.

        Raises:
            PruningError: It is no GLM's, or the list of its layers contradicts it.
        """
        if config.get("model_type") != "glm":
            raise PruningError(f"only a GLM can be pruned, not a model of type {config.get('model_type')!r}")
        heads, groups = config["num_attention_heads"], config["num_key_value_heads"] or config["num_attention_heads"]
        widest = LayerShape(
            intermediate_size=config["intermediate_size"], num_key_value_heads=groups, num_attention_heads=heads
        )
        try:
            layers = [LayerShape(**layer) for layer in config.get(LAYERS_KEY) or ()]
        except (ValidationError, TypeError) as exc:
            raise PruningError(f"{LAYERS_KEY} does not list layers' widths: remove it or load the true one") from exc
        layers = layers or [widest] * config["num_hidden_layers"]
        ratio = heads // groups
        if len(layers) != config["num_hidden_layers"] or any(
            layer.num_attention_heads != ratio * layer.num_key_value_heads for layer in layers
        ):
            raise PruningError(f"{LAYERS_KEY} does not fit the configuration's number of layers or of query heads")
        tied = bool(config.get("tie_word_embeddings"))
        labels = len(config.get("id2label") or ()) if classifier else 0
        return cls(
            hidden=config["hidden_size"],
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            queries_per_group=ratio,
            attention_bias=bool(config["attention_bias"]),
            vocabulary=config["vocab_size"],
            outputs=labels if classifier else 0 if tied else config["vocab_size"],
            layers=tuple(layers),
        )

    @property
    def widest(self) -> LayerShape:
        """The greatest widths, which a configuration of transformers holds."""
        groups = max(layer.num_key_value_heads for layer in self.layers)
        return LayerShape(
            intermediate_size=max(layer.intermediate_size for layer in self.layers),
            num_key_value_heads=groups,
            num_attention_heads=groups * self.queries_per_group,
        )

    @property
    def is_homogeneous(self) -> bool:
        """Whether all layers have the same widths."""
        return len(set(self.layers)) == 1

    def config_fields(self) -> dict[str, Any]:
        """Return the configuration's fields of this shape; `LAYERS_KEY` is None for a homogeneous one."""
        layers = None if self.is_homogeneous else [layer.model_dump() for layer in self.layers]
        return self.widest.model_dump() | {"num_hidden_layers": len(self.layers), LAYERS_KEY: layers}

    def with_layers(self, layers: tuple[LayerShape, ...]) -> Self:
        """Return the same shape with other layers."""
        return self.model_copy(update={"layers": layers})

    # --- costs, exactly as the tensors are counted

    def channel_parameters(self) -> int:
        """Return the number of parameters of an FFN channel: its rows of gate and up, its column of down."""
        return 3 * self.hidden

    def group_matrix_parameters(self) -> int:
        """Return the number of matrix elements of a KV group: key, value, and its heads' query and output maps."""
        return self.hidden * self.head_dim * (2 + 2 * self.queries_per_group)

    def group_bias_parameters(self) -> int:
        """Return the number of biases of a KV group: key, value, and one per query head."""
        return self.head_dim * (2 + self.queries_per_group) if self.attention_bias else 0

    def parameters(self) -> int:
        """Return the number of parameters, each tensor once (a tied output layer is the embedding)."""
        return sum(self._numbers())

    def bytes(self, bits: StorageBits) -> float:
        """Return the bytes of all tensors at the given bits a number, without any header."""
        embedding, matrices, vectors = self._numbers()
        return (embedding * bits.embedding + matrices * bits.matrix + vectors * bits.vector) / 8

    def _numbers(self) -> tuple[int, int, int]:
        """Return the numbers of elements of embedding and output, of the linear layers, and of norms and biases."""
        groups = sum(layer.num_key_value_heads for layer in self.layers)
        channels = sum(layer.intermediate_size for layer in self.layers)
        embedding = (self.vocabulary + self.outputs) * self.hidden
        matrices = groups * self.group_matrix_parameters() + channels * self.channel_parameters()
        vectors = groups * self.group_bias_parameters() + (2 * len(self.layers) + 1) * self.hidden
        return embedding, matrices, vectors
