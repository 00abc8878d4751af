"""The keys and the tensor of a GGUF file that say how a model rotates its queries and keys.

Rope scaling is applied where transformers has the same formula: linear, YaRN, and that of Llama 3.1, of which the file
holds the factors only. Other kinds are refused.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

INERT = ("rope.scaling.finetuned", "tensor_data_layout")
"""Keys that llama.cpp keeps for the record only."""

Keys = Mapping[str, Any]
"""The architecture keys of a file without the architecture's name, and their values."""


def head_dim(keys: Keys) -> int | None:
    """Width of an attention head; None where it differs between layers."""
    if "attention.key_length" in keys:
        return int(keys["attention.key_length"])
    heads = keys["attention.head_count"]
    return None if isinstance(heads, list) else int(keys["embedding_length"]) // int(heads)


def _rope(config: PreTrainedConfig, layers: str) -> dict[str, Any] | None:
    """The rotation's parameters, where layers differ those of one kind of layer."""
    found = getattr(config, "rope_parameters", None)
    return found.get(layers, found) if found else None


def _scaling(keys: Keys) -> dict[str, Any]:
    """The rotation's scaling under the names of transformers; empty without one.

    Raises:
        ValueError: a kind of scaling that is not read from a file.
    """
    factor = keys.get("rope.scaling.factor") or keys.get("rope.scale_linear") or 0
    kind = keys.get("rope.scaling.type") or ("linear" if factor else "none")
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(
            f"rope.scaling.type is {kind!r}, which is not read from a file; use the model's folder or Hub id"
        )
    if kind == "none" or (kind == "linear" and factor in (0, 1)):
        return {}
    scaling = {"rope_type": kind, "factor": float(factor)}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = keys.get("rope.scaling.original_context_length")
    return scaling


def rope_settings(
    architecture: str, keys: Keys, default: PreTrainedConfig, factors: np.ndarray | None
) -> dict[str, Any]:
    """The rotation's settings under the names of the configuration; empty for a class without rotation.

    Raises:
        ValueError: scaling that is not read from a file.
    """
    if not getattr(default, "rope_parameters", None):
        return {}
    base = float(keys.get("rope.freq_base", 10000.0))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": base, **_scaling(keys)}
    width = head_dim(keys)
    if "partial_rotary_factor" in (_rope(default, "full_attention") or {}) and width:
        rope["partial_rotary_factor"] = keys.get("rope.dimension_count", width) / width
    if factors is not None and not np.allclose(factors, 1.0):
        rope |= _llama3_scaling(factors, base, width, keys)
    if "full_attention" not in default.rope_parameters:
        return {"rope_parameters": rope}
    own = (_rope(default, "sliding_attention") or {}).get("rope_theta", base)
    local = {"rope_type": "default", "rope_theta": float(keys.get("rope.freq_base_swa", own))}
    if architecture != "gemma3":  # of one base for all layers
        local = dict(rope)
    return {"rope_parameters": {"full_attention": rope, "sliding_attention": local}}


def _llama3_scaling(factors: np.ndarray, base: float, width: int | None, keys: Keys) -> dict[str, Any]:
    """The rope scaling of Llama 3.1 and later whose factors these are.

    The file holds the factors only. All published models have the same two bounds and the same original length, so
    these are tried, and the factors are compared.

    Raises:
        ValueError: factors of another kind.
    """
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    largest = float(factors.max())
    original = keys.get("rope.scaling.original_context_length") or 8192
    scaling = {
        "rope_type": "llama3",
        "factor": float(f"{largest:.6g}"),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": int(original),
    }
    if width and len(factors) == width // 2:
        config = LlamaConfig(
            hidden_size=width,
            num_attention_heads=1,
            head_dim=width,
            rope_parameters={**scaling, "rope_theta": base},
        )
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        plain = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
        expected = (plain / scaled.double()).numpy()
        if np.allclose(factors, expected, rtol=1e-4, atol=0):
            return scaling
    raise ValueError(
        f"rope_freqs.weight divides the rotation's frequencies by {factors.min():.4g} to {largest:.4g}, which is not "
        f"the scaling of Llama 3.1 with an original context of {original} tokens; no other scaling is read from a "
        "file, use the model's folder or Hub id"
    )


def rope_problems(
    architecture: str, keys: Keys, config: PreTrainedConfig, factors: np.ndarray | None
) -> list[str]:
    """What the file says of the rotation and the configuration does not."""
    problems = []
    rope = _rope(config, "full_attention")
    about = sorted(key for key in keys if key.startswith("rope.") and key not in INERT)
    if rope is None:
        if about or factors is not None:
            what = f"{architecture}.{about[0]}" if about else "rope_freqs.weight"
            problems.append(f"{what} is there, and {type(config).__name__} rotates nothing")
        return problems
    base = keys.get("rope.freq_base", 10000.0)
    if "rope.freq_base" not in keys and config.default_theta != 10000.0:  # the class has a base of its own
        problems.append(f"the key {architecture}.rope.freq_base is missing")
    if not equal(rope["rope_theta"], base):
        problems.append(f"{architecture}.rope.freq_base is {base}, and rope_theta is {rope['rope_theta']}")
    local, local_base = _rope(config, "sliding_attention") or rope, keys.get("rope.freq_base_swa")
    if local_base is not None and (local is rope or not equal(local["rope_theta"], local_base)):
        problems.append(f"{architecture}.rope.freq_base_swa is {local_base}, which the model ignores")
    width = head_dim(keys)
    if width:
        rotated = int(width * float(rope.get("partial_rotary_factor") or 1.0))
        wanted = keys.get("rope.dimension_count", width)
        if wanted != rotated:
            problems.append(
                f"{architecture}.rope.dimension_count is {wanted}, and the model rotates {rotated}"
            )
    scaling = _scaling(keys)
    if factors is None or np.allclose(factors, 1.0):
        expected = {"rope_type": "default", **scaling}
        different = [name for name, value in expected.items() if not _same(rope.get(name), value)]
        if different:
            problems.append(
                f"{architecture}.rope.scaling asks for {different[0]} {expected[different[0]]!r}, and the model has "
                f"{rope.get(different[0])!r}"
            )
    elif scaling:
        problems.append(f"{architecture}.rope.scaling and rope_freqs.weight are both there")
    elif rope.get("rope_type") != "llama3":
        problems.append(f"rope_freqs.weight is there, and {type(config).__name__} has no such scaling")
    if keys.get("rope.scaling.attn_factor", 1) not in (0, 1):
        problems.append(
            f"{architecture}.rope.scaling.attn_factor is {keys['rope.scaling.attn_factor']}, not read"
        )
    return problems


def _same(has: Any, value: Any) -> bool:
    if isinstance(has, str) or isinstance(value, str) or has is None or value is None:
        return has == value
    return equal(has, value)


def equal(has: Any, value: Any) -> bool:
    """Whether two numbers are equal up to the file's float32."""
    if has is None or isinstance(value, (str, list)) or isinstance(has, (str, list)):
        return has == value
    return math.isclose(float(has), float(value), rel_tol=1e-6, abs_tol=1e-12)


def is_number(value: Any) -> bool:
    """Whether a key's value is a number, not a truth value or text."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
