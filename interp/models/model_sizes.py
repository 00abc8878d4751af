"""The size of a model from its configuration alone: weights, and what a token costs, before anything is loaded.

Counts the matrices of a transformer decoder: query, key, value and output projections, two or three matrices of an MLP
(of every expert in a mixture, of which a token passes through some), the embedding and, where it is not tied, the
unembedding. Norms and biases are left out: they are under 1% of the weights. Imports neither torch nor transformers.

    size = ModelSize.from_config(json.loads(Path("config.json").read_text()))
    size.weights, size.flops_per_token
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TWO_MATRICES = ("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon", "phi", "starcoder2")
"""Model types whose MLP is two matrices; the others gate it by a third."""
_NAMES: dict[str, tuple[str, ...]] = {
    "n_layers": ("num_hidden_layers", "n_layer"),
    "d_model": ("hidden_size", "n_embd"),
    "n_heads": ("num_attention_heads", "n_head"),
    "d_vocab": ("vocab_size",),
}
"""What a configuration calls its numbers."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number by dtype."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """The size of a decoder."""

    n_layers: int
    """Number of decoder blocks."""
    d_model: int
    """Width of the residual stream."""
    d_vocab: int
    """Tokens of the vocabulary."""
    block_weights: int
    """Weights of one block, with all experts."""
    active_weights: int
    """Weights of one block that a token passes through."""
    kv_width: int
    """Numbers that a block caches for a token: its key and its value."""
    tied: bool
    """Whether embedding and unembedding are the same matrix."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, source: str = "config.json") -> "ModelSize":
        """The size that a checkpoint's `config.json` gives.

        Raises:
            ValueError: a number is missing or is none; the message names it.
        """
        text: Any = config.get("text_config") or config
        given = {name: _number(text, keys, source) for name, keys in _NAMES.items()}
        d_model, n_heads = given["d_model"], given["n_heads"]
        n_kv = _number(text, ("num_key_value_heads",), source, default=n_heads)
        d_head = _number(text, ("head_dim",), source, default=d_model // n_heads)
        d_mlp = _number(text, ("intermediate_size", "ffn_dim", "n_inner"), source, default=4 * d_model)
        matrices = 2 if text.get("model_type") in _TWO_MATRICES else 3
        experts = _number(text, ("num_local_experts", "num_experts", "n_routed_experts"), source, default=1)
        d_expert = d_mlp if experts == 1 else _number(text, ("moe_intermediate_size",), source, default=d_mlp)
        active = 1 if experts == 1 else _number(text, ("num_experts_per_tok",), source, default=experts)
        attention = d_model * d_head * (2 * n_heads + 2 * n_kv)
        expert, router = matrices * d_model * d_expert, 0 if experts == 1 else d_model * experts
        return cls(
            n_layers=given["n_layers"],
            d_model=d_model,
            d_vocab=given["d_vocab"],
            block_weights=attention + experts * expert + router,
            active_weights=attention + active * expert + router,
            kv_width=2 * n_kv * d_head,
            tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", True))),
        )

    @property
    def weights(self) -> int:
        """All weights."""
        return self.n_layers * self.block_weights + self.d_vocab * self.d_model * (1 if self.tied else 2)

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations of a token's pass through all blocks, without its unembedding.

        Scores between tokens are left out: at 1,000 tokens of context they are a tenth of it or less.
        """
        return 2 * self.n_layers * self.active_weights

    @property
    def flops_per_unembedding(self) -> int:
        """Floating-point operations of the logits of one position."""
        return 2 * self.d_model * self.d_vocab

    def cached_bytes(self, tokens: int, itemsize: int) -> int:
        """Bytes of the keys and values of this many tokens."""
        return tokens * self.n_layers * self.kv_width * itemsize


def _number(
    config: Mapping[str, Any], names: tuple[str, ...], source: str, *, default: int | None = None
) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, list) and value:  # a width per layer: their mean
            value = round(sum(value) / len(value))
        if isinstance(value, int) and value > 0:
            return value
        if value is not None:
            raise ValueError(f"{source}: {name} must be a whole number above 0, got {value!r:.60}")
    if default is None:
        raise ValueError(f"{source} has no {' or '.join(names)}, so the model's size is not known")
    return default
