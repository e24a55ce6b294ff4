"""The GLM presets: four sizes, deep and thin rather than wide, and their transformers configurations.

``GlmConfig`` is made for a 9-billion-parameter model and its defaults break small ones: ``head_dim=128``, two key-value
heads, ``pad_token_id=151329`` (outside a small vocabulary), three end tokens, untied embeddings. All of them are set
here. Reference: GLM (Du et al., "GLM: General Language Model Pretraining with Autoregressive Blank Infilling",
arXiv:2103.10360) in its transformers form; deep and thin: MobileLLM (Liu et al., arXiv:2402.14905, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from transformers import GlmConfig

from fedglm.autoglm.errors import ModelError
from fedglm.core.suggestions import list_choices


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The shape of a GLM.

    Attributes:
        hidden: Width H.
        layers: Number of layers.
        heads: Number of query heads, of H / heads each.
        kv_heads: Number of key-value heads, which the query heads share.
        intermediate: Width of the gated feed-forward layer.
        max_length: Maximum sequence length in tokens.
        min_vocab: Minimum number of embedding rows, whatever the tokenizer needs (0: as many as the tokenizer has).
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    max_length: int
    min_vocab: int = 0

    def parameter_count(self, vocab_size: int, num_labels: int = 0) -> int:
        """Count the parameters of the language model with tied embeddings, or of the classifier if ``num_labels`` > 0.

        Per layer: query and output maps of H x H, key and value maps of H x H kv/heads (query, key and value have a
        bias), the fused gate and up map and the down map of H x I, and two norms; then the embedding, the last norm and
        the head (H x labels, no bias).
        """
        width, kv_width = self.hidden, self.hidden // self.heads * self.kv_heads
        attention = 2 * width * width + 2 * width * kv_width + width + 2 * kv_width
        layer = attention + 3 * width * self.intermediate + 2 * width
        rows = max(vocab_size, self.min_vocab)
        return rows * width + self.layers * layer + width + num_labels * width


PRESETS = MappingProxyType(
    {
        # name and size with the byte vocabulary of 256, tied: 0.09 M, 0.48 M, 9.8 M; the last with 32,000 rows: 76.5 M
        "glm-0.1m": Preset(hidden=64, layers=2, heads=4, kv_heads=2, intermediate=128, max_length=1024),
        "glm-0.5m": Preset(hidden=128, layers=3, heads=4, kv_heads=2, intermediate=256, max_length=1024),
        "glm-10m": Preset(hidden=320, layers=9, heads=10, kv_heads=2, intermediate=864, max_length=2048),
        "glm-76m": Preset(
            hidden=640, layers=12, heads=10, kv_heads=2, intermediate=1920, max_length=4096, min_vocab=32_000
        ),
    }
)


def find_preset(name: str) -> Preset:
    """Return the preset of that name.

    Raises:
        ModelError: The preset is unknown; the message lists all.
    """
    if name not in PRESETS:
        raise ModelError(f"no preset is called {name!r}; {list_choices(name, PRESETS)}")
    return PRESETS[name]


def make_glm_config(
    preset: Preset,
    *,
    vocab_size: int,
    pad_id: int,
    bos_id: int,
    eos_id: int,
    tied: bool,
    max_length: int | None = None,
    labels: tuple[str, ...] = (),
) -> GlmConfig:
    """Make the transformers configuration of a preset, without relying on ``GlmConfig``'s defaults.

    Args:
        preset: The shape.
        vocab_size: Exclusive upper bound of the data's token ids; ``preset.min_vocab`` may require more rows.
        pad_id: Padding token.
        bos_id: First token of a sequence.
        eos_id: Last token of a sequence.
        tied: Whether the output layer is the embedding itself (language models).
        max_length: Maximum sequence length in tokens; None takes the preset's.
        labels: Class names, in the order of the head's rows (classifiers).
    """
    config = GlmConfig(
        vocab_size=max(vocab_size, preset.min_vocab),
        hidden_size=preset.hidden,
        intermediate_size=preset.intermediate,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        num_key_value_heads=preset.kv_heads,
        head_dim=preset.hidden // preset.heads,
        max_position_embeddings=max_length or preset.max_length,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
        tie_word_embeddings=tied,
        pad_token_id=pad_id,
        bos_token_id=bos_id,
        eos_token_id=eos_id,
    )
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: number for number, name in enumerate(labels)}
    return config
