"""Tiny random models of the families whose blocks must be found, and some that must be refused."""

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "initializer_range": 0.2,
}
HEAD = {**COMMON, "head_dim": 8}
GEMMA = {**HEAD, "query_pre_attn_scalar": 8, "sliding_window": 512}
IDS = {"vocab_size": 300, "bos_token_id": 257, "eos_token_id": 258}

COVERED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", HEAD),
    "qwen2": ("Qwen2Config", COMMON),
    "qwen3": ("Qwen3Config", HEAD),
    "mistral": ("MistralConfig", HEAD),
    "gemma2": ("Gemma2Config", GEMMA),
    "gemma3": ("Gemma3TextConfig", GEMMA),
    "phi3": ("Phi3Config", COMMON),
    "olmo2": ("Olmo2Config", COMMON),
    "gpt_neox": (
        "GPTNeoXConfig",
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, **IDS},
    ),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 3, "n_head": 4, **IDS}),
    "mixtral": ("MixtralConfig", {**HEAD, "num_local_experts": 4}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**HEAD, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
}
PARALLEL = {"gpt_neox"}
POST_NORM = {"gemma2", "gemma3", "olmo2"}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    # Scales what its blocks add to the stream.
    "granite": ("GraniteConfig", {**COMMON, "residual_multiplier": 0.5}),
    # Its blocks return lists.
    "openai-gpt": ("OpenAIGPTConfig", {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 300}),
    # Keeps its MLP in the block itself.
    "opt": (
        "OPTConfig",
        {
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 32,
        },
    ),
}
_HYBRID = {**HEAD, "num_hidden_layers": 4}
_MAMBA = {
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
HYBRID: dict[str, tuple[str, dict[str, Any]]] = {
    # Blocks that mix tokens by state-space or recurrent modules, beside or instead of attention.
    "jamba": (
        "JambaConfig",
        {
            **_HYBRID,
            "use_mamba_kernels": False,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
        },
    ),
    "bamba": ("BambaConfig", {**_HYBRID, **_MAMBA, "attn_layer_indices": [1, 3]}),
    "falcon_h1": ("FalconH1Config", {**_HYBRID, **_MAMBA, "mamba_d_ssm": 64}),
    "recurrent_gemma": ("RecurrentGemmaConfig", {**_HYBRID, "lru_width": 32, "attention_window_size": 8}),
    "zamba": (
        "ZambaConfig",
        {
            **{key: value for key, value in _HYBRID.items() if key != "head_dim"},
            "layers_block_type": ["mamba", "hybrid"] * 2,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "n_mamba_heads": 2,
            "use_mamba_kernels": False,
        },
    ),
    "lfm2": ("Lfm2Config", {**_HYBRID, "layer_types": ["conv", "full_attention"] * 2}),
    "mamba": ("MambaConfig", {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, **IDS}),
}


def build(kind: str, settings: dict[str, Any]) -> transformers.PreTrainedModel:
    """A seeded random model of a configuration class."""
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**settings)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
CHANGING_ROPE: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": (
        "Phi3Config",
        {
            **COMMON,
            "original_max_position_embeddings": 64,
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [1.0, 4.0, 16.0, 40.0],
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "dynamic": ("LlamaConfig", {**HEAD, "max_position_embeddings": 64, "rope_parameters": _DYNAMIC}),
    # Two types of layers, of which only one changes.
    "dynamic_by_layer": (
        "Gemma3TextConfig",
        {
            **GEMMA,
            "max_position_embeddings": 64,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": _DYNAMIC,
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
}
"""Models whose rotary frequencies change beyond a length of 64 tokens."""
