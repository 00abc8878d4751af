"""What determines activations, as the key of the activation store.

Two collections share a key exactly where a pass would compute the same: equal weights, configuration and modules, site,
dtype, interventions, and whatever decides rounding (path, precision of products, processor, versions of torch and
transformers). A row adds the token ids of the rendered prompt and the position.

What a key cannot express is not stored: a model in training mode, hooks or forwards that somebody put on it
(`apply`, soft prompts, an experiment of the user's), autocast, adapters that are not merged, interventions other than
`Ablate` and `Add`. `why_not` says which.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from interp.engine.interventions import Ablate, Add, Intervention
from interp.engine.reads import Request
from interp.models.chat_model import ChatModel, Site
from interp.models.tokens import ChatTokens
from interp.storage.store_cells import DTYPES, Place, TableKey

ENGINE = "2"
"""Raised when what the engine computes changes by more than rounding."""
_CAPTURING = "transformers.utils.output_capturing"
"""Whose hooks stay on a model that once gave its hidden states, and change nothing."""
_VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Fields of a configuration that say where it comes from; the dtype is in the key by itself."""


def why_not(model: ChatModel, interventions: Sequence[Intervention]) -> str | None:
    """Why activations of this model, as it stands, are neither stored nor read; None where they are."""
    if dtype_name(model) not in DTYPES:
        return f"its dtype is {model.dtype}"
    if model.hf.training:
        return "it is in training mode"
    if torch.is_autocast_enabled(model.device.type):
        return "autocast is on"
    for name, module in model.hf.named_modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if any(getattr(hook, "__module__", "") != _CAPTURING for hook in hooks):
            return f"{name or 'the model'} has hooks"
        if "forward" in vars(module) and not hasattr(
            module, "_hf_hook"
        ):  # accelerate's moves, and changes nothing
            return f"the forward of {name or 'the model'} was replaced"
    if (tuners := sys.modules.get("peft.tuners.tuners_utils")) and any(
        isinstance(module, tuners.BaseTunerLayer) for module in model.hf.modules()
    ):
        return "it has adapters that are not merged"
    if strange := [type(i).__name__ for i in interventions if type(i) not in (Ablate, Add)]:
        return f"what {strange[0]} does is not known"
    return None


def dtype_name(model: ChatModel) -> str:
    """Name of the model's dtype, such as `bfloat16`."""
    return str(model.dtype).removeprefix("torch.")


def table_key(model: ChatModel, site: str, interventions: Sequence[Intervention], *, path: str) -> TableKey:
    """The key of what is read at a site, or of completions.

    Args:
        site: a site, or `completion_tables.COMPLETIONS`.
        path: `packed` or `plain`, or `generate` for completions.
    """
    key = TableKey(
        site=site,
        weights_hash=model.weights_hash,
        structure=structure(model.hf),
        dtype=dtype_name(model),
        n_layers=model.n_layers,
        d_model=model.d_model,
        numerics=numerics(model, path=path),
    )
    return under_interventions(key, interventions)


def under_interventions(key: TableKey, interventions: Sequence[Intervention]) -> TableKey:
    """The same key with these interventions in force."""
    described = [_described(i) for i in interventions]
    return replace(key, interventions=_digest(described) if described else "")


def table_keys(
    model: ChatModel, request: Request, interventions: Sequence[Intervention], *, path: str
) -> dict[Site, TableKey]:
    """The key of each requested site; `path` is `packed` or `plain`."""
    first = table_key(model, request.sites[0], interventions, path=path)
    return {site: replace(first, site=site) for site in request.sites}


def numerics(model: ChatModel, *, path: str) -> dict[str, str]:
    """What decides rounding beside weights and dtype."""
    cuda = model.device.type == "cuda"
    return {
        "engine": ENGINE,
        "path": path,
        "precision": model.precision,
        "float32 products": torch.get_float32_matmul_precision(),
        "gradients": str(torch.is_grad_enabled()),  # with them no kernels are fused
        "mkldnn": str(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled),  # pyright: ignore
        "device": torch.cuda.get_device_name(model.device)
        if cuda
        else f"{model.device.type} {torch.backends.cpu.get_cpu_capability()}",
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
    }


def structure(hf: nn.Module) -> str:
    """SHA-256 of a model's configuration, the classes of its modules and the buffers that no file holds."""
    config: Any = hf.config
    described = [
        _without_origin(config.to_dict()),
        str(config._attn_implementation),
        [
            f"{name}:{type(module).__module__}.{type(module).__qualname__}"
            for name, module in hf.named_modules()
        ],
    ]
    stored = hf.state_dict(keep_vars=True).keys()
    # Rotary frequencies belong to the weights' hash, which knows those that follow the prompts.
    loose = {n: b for n, b in hf.named_buffers() if n not in stored and "inv_freq" not in n}
    return _digest([*described, {name: _described(buffer) for name, buffer in loose.items()}])


def places_of(
    tokens: ChatTokens, rows: Sequence[int], request: Request, interventions: Sequence[Intervention]
) -> list[Place]:
    """The rows of the store that these prompts' requested tokens are, prompt by prompt."""
    texts = tokens.identity.texts
    return [
        Place(
            tokens=tuple(map(int, tokens.ids[row])),
            position=position,
            scope=scope_of(tokens, row) if interventions else "",
            role=role,
            text=texts[row],
        )
        for row in rows
        for role, position in zip(request.roles, request.where[row].tolist(), strict=True)
    ]


def scope_of(tokens: ChatTokens, row: int) -> str:
    """Where the regions of a prompt begin, which interventions may be limited to."""
    thought = tokens.thoughts[row] if tokens.thoughts else ()
    return json.dumps([tokens.starts[row], tokens.ends[row], tokens.prefill(row), *thought])


def _without_origin(config: Any) -> Any:
    if isinstance(config, dict):
        return {str(name): _without_origin(value) for name, value in config.items() if name not in _VOLATILE}
    return [_without_origin(value) for value in config] if isinstance(config, list) else config


def _described(value: Any) -> Any:
    """An intervention or a value of one as JSON; tensors by the hash of their content."""
    if isinstance(value, Tensor):
        raw = value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return [str(value.dtype), list(value.shape), hashlib.sha256(raw).hexdigest()]
    if isinstance(value, (Ablate, Add)):
        parts = {f.name: _described(getattr(value, f.name)) for f in fields(value)}
        return [type(value).__name__, parts]
    if isinstance(value, (tuple, list)):
        return [_described(part) for part in value]
    return repr(value)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()
