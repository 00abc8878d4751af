"""The architecture keys of a GGUF file → the model's configuration, every key accounted for.

transformers reads some of the keys and fills in the rest from the defaults of its configuration class. Here each key is
either compared with the configuration (and set in it, where transformers leaves it out), or the file is refused with
the key's name: rope scaling, soft caps, sliding windows, attention scales, biases, numbers of experts. A key that is
left out has the default of llama.cpp, whose format this is; a key that llama.cpp requires must be there.

A known key that has no counterpart in the configuration is accepted only with the value that means "none".
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from interp.models.gguf_rope import INERT, Keys, equal, head_dim, is_number, rope_problems, rope_settings

_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("n_inner", "ffn_hidden_size", "intermediate_size"),
    "vocab_size": ("vocab_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "use_parallel_residual": ("use_parallel_residual",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
    "expert_weights_scale": ("routed_scaling_factor",),
}
"""Keys with one setting of the configuration each; the first name that the configuration class has is meant."""

_NONE: dict[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "use_parallel_residual": (False,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_weights_scale": (0, 1),
    "expert_weights_norm": (False,),
    "expert_gating_func": (0, 1),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.causal": (True,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "pooling_type": (0,),
}
"""Values with which a key without a counterpart in the configuration changes nothing."""

_REQUIRED = ("context_length", "embedding_length", "block_count", "attention.head_count")
_NORM_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")

# llama.cpp tells the 27B members of these families, which scale attention by the mean head width, by their depth.
_SCALED_BY_WIDTH = {("gemma2", 46), ("gemma3", 62)}
_HONOUR_ATTENTION_SOFTCAP = ("gemma2",)
_ALIBI = ("bloom",)

_SCALES = ("rope.scaling.factor", "rope.scale_linear")
_POSITIVE = (*_REQUIRED, *_NORM_EPSILONS, "rope.freq_base", "rope.freq_base_swa", *_SCALES)
"""Keys whose values are above 0: another one is damage, which shows as NaN or as positions that mean nothing."""

_SPECIAL = (
    "attention.key_length",
    "attention.value_length",
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
)
"""Keys that are compared by functions of their own."""


def configuration(
    architecture: str,
    keys: Keys,
    read: Mapping[str, Any],
    tensor_names: set[str],
    rope_factors: np.ndarray | None,
) -> PreTrainedConfig:
    """The configuration of the model that a file describes.

    Args:
        architecture: `general.architecture`.
        read: what transformers reads from the keys, by names of the configuration.
        rope_factors: values of `rope_freqs.weight`, by which the frequencies of the rotation are divided; None without.

    Raises:
        ValueError: a key is missing, unknown, or asks for something that the configuration class cannot express.
    """
    missing = [key for key in _REQUIRED if keys.get(key) is None]
    if not any(key in keys for key in _NORM_EPSILONS):
        missing.append(_NORM_EPSILONS[0])
    if missing:
        raise ValueError(
            f"the key {architecture}.{missing[0]} is missing, without which the model is unknown"
        )
    for key in _POSITIVE:
        # 0 is how llama.cpp writes "no scaling"; lists, one number a layer, are refused where they are compared.
        none = key in _SCALES and keys.get(key) == 0
        value = keys.get(key, 1)
        if not none and not isinstance(value, list) and not (is_number(value) and 0 < value < math.inf):
            raise ValueError(f"{architecture}.{key} is {value!r:.80}, which is not a number above 0")
    settings = dict(read)
    kind = str(settings.pop("model_type"))
    default = CONFIG_MAPPING[kind]()
    settings |= _plain_settings(keys, default) | _bias_settings(tensor_names, default)
    settings |= _attention_settings(architecture, keys, default)
    settings |= rope_settings(architecture, keys, default, rope_factors)
    if "rope_parameters" in settings:
        settings.pop("rope_theta", None)
    try:
        config = AutoConfig.for_model(kind, **settings)
    except Exception as error:  # a configuration class's own checks
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the keys of {architecture} do not fit {type(default).__name__}: {reason}"
        ) from error
    problems = [
        *_plain_problems(architecture, keys, config),
        *_attention_problems(architecture, keys, config),
        *rope_problems(architecture, keys, config, rope_factors),
    ]
    if problems:
        raise ValueError("; ".join(problems))
    return config


def _attribute(key: str, config: PreTrainedConfig) -> str | None:
    return next((name for name in _ATTRIBUTES[key] if hasattr(config, name)), None)


def _plain_settings(keys: Keys, default: PreTrainedConfig) -> dict[str, Any]:
    settings = {}
    for key, value in keys.items():
        if key in _ATTRIBUTES and not isinstance(value, list) and (name := _attribute(key, default)):
            is_cap = key.endswith("softcapping")
            settings[name] = None if is_cap and value in _NONE[key] else value
    if "attention.head_count_kv" not in keys and (name := _attribute("attention.head_count_kv", default)):
        settings[name] = keys["attention.head_count"]
    return settings


def _bias_settings(tensor_names: set[str], default: PreTrainedConfig) -> dict[str, Any]:
    """Biases that the file has and the configuration class can switch on."""
    leaves = {name.split(".", 2)[-1] for name in tensor_names if name.startswith("blk.")}
    settings = {}
    if hasattr(default, "attention_bias"):
        settings["attention_bias"] = "attn_q.bias" in leaves or "attn_qkv.bias" in leaves
    if hasattr(default, "mlp_bias"):
        settings["mlp_bias"] = "ffn_down.bias" in leaves
    return settings


def _attention_scale(architecture: str, keys: Keys) -> float | None:
    """Factor on the products of queries and keys."""
    if given := keys.get("attention.scale"):
        return float(given)
    if (architecture, keys["block_count"]) in _SCALED_BY_WIDTH:
        return float(keys["embedding_length"] / keys["attention.head_count"]) ** -0.5
    width = head_dim(keys)
    return None if width is None else width**-0.5


def _window(architecture: str, keys: Keys) -> int | None:
    """Width of the sliding window; None without one, or one as wide as the context."""
    width = keys.get("attention.sliding_window")
    if width is None and architecture == "gemma2":
        width = 4096  # llama.cpp's default
    return None if not width or width >= keys["context_length"] else int(width)


def _attention_settings(architecture: str, keys: Keys, default: PreTrainedConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if hasattr(default, "head_dim"):
        settings["head_dim"] = head_dim(keys)
    if hasattr(default, "query_pre_attn_scalar") and (scale := _attention_scale(architecture, keys)):
        exact = scale**-2
        settings["query_pre_attn_scalar"] = round(exact) if abs(exact - round(exact)) < 1e-3 else exact
    if hasattr(default, "sliding_window"):
        # A window that is as wide as the context masks nothing, but layers that slide also rotate differently.
        slides = "sliding_attention" in (getattr(default, "layer_types", None) or ())
        width = keys.get("attention.sliding_window") or None
        settings["sliding_window"] = width if slides and width else _window(architecture, keys)
    pattern = keys.get("attention.sliding_window_pattern")
    if hasattr(default, "layer_types") and pattern is not None:
        settings["layer_types"] = [
            "sliding_attention" if slides else "full_attention" for slides in _slides(pattern, keys)
        ]
    return settings


def _slides(pattern: Any, keys: Keys) -> list[bool]:
    n_layers = int(keys["block_count"])
    if isinstance(pattern, list):
        return [bool(value) for value in pattern]
    if isinstance(pattern, bool) or int(pattern) <= 0:
        return [bool(pattern)] * n_layers
    return [bool((layer + 1) % int(pattern)) for layer in range(n_layers)]


def _plain_problems(architecture: str, keys: Keys, config: PreTrainedConfig) -> list[str]:
    problems = []
    for key, value in keys.items():
        if key in _SPECIAL or key in INERT:
            continue
        if key == "attention.max_alibi_bias" and architecture in _ALIBI:
            continue
        name = _attribute(key, config) if key in _ATTRIBUTES else None
        none = _NONE.get(key, ())
        shown = f"{architecture}.{key} is {value!r:.80}"
        if name is None:
            if key not in _ATTRIBUTES and key not in _NONE:
                problems.append(f"{architecture}.{key} ({value!r:.40}) is not a key that is read")
            elif not isinstance(value, list) and value not in none:
                problems.append(f"{shown}, which {type(config).__name__} cannot express")
            continue
        has = getattr(config, name)
        if isinstance(value, list) or not (equal(has, value) or (not has and value in none)):
            problems.append(f"{shown}, and {name} is {has!r}")
    return problems


def _attention_problems(architecture: str, keys: Keys, config: PreTrainedConfig) -> list[str]:
    problems = []
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else None)
    for key in ("attention.key_length", "attention.value_length"):
        if key in keys and keys[key] != width:
            problems.append(f"{architecture}.{key} is {keys[key]}, and head_dim is {width}")
    expected = _attention_scale(architecture, keys)
    scale = float(getattr(config, "query_pre_attn_scalar", None) or width or 0) ** -0.5 if width else None
    if expected is not None and scale is not None and not equal(scale, expected):
        problems.append(f"attention is scaled by {expected:.6g} in the file, and by {scale:.6g} in the model")
    cap = keys.get("attn_logit_softcapping")
    if cap and architecture not in _HONOUR_ATTENTION_SOFTCAP:
        problems.append(
            f"{architecture}.attn_logit_softcapping is {cap}, which {type(config).__name__} ignores"
        )
    kinds = getattr(config, "layer_types", None)
    has = getattr(config, "sliding_window", None) or None
    if kinds is not None and "sliding_attention" not in kinds:
        has = None
    if has is not None and has >= config.max_position_embeddings:
        has = None
    wanted = _window(architecture, keys)
    if kinds is not None and "sliding_attention" in kinds and "attention.sliding_window" not in keys:
        if architecture != "gemma2":
            problems.append(f"the key {architecture}.attention.sliding_window is missing")
    elif has != wanted:
        problems.append(
            f"{architecture}.attention.sliding_window is {wanted}, and the model's window is {has}"
        )
    pattern = keys.get("attention.sliding_window_pattern")
    if pattern is not None and wanted is not None:
        expects = _slides(pattern, keys)
        slides = [kind == "sliding_attention" for kind in kinds or ["sliding_attention"] * len(expects)]
        if slides != expects:
            problems.append(
                f"{architecture}.attention.sliding_window_pattern does not fit the model's layers"
            )
    return problems
