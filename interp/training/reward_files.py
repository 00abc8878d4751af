"""Files of a reward model: `reward.json` with provenance and hashes, `head.safetensors`, and the adapter's folder.

save_reward_model(reward, "runs/reward")
reward = load_reward_model("runs/reward")                 # loads its base model, too
reward = load_reward_model("runs/reward", model=model)    # on a model that is loaded already
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from interp.data.preferences import PreferenceSet
from interp.models.adapted_models import copy_with_weights
from interp.models.adapter_merging import merged_adapter
from interp.models.chat_model import ChatModel, load
from interp.models.tokenizer_files import tokenizer_hash
from interp.storage.atomic_files import write_tensors
from interp.storage.file_hashes import file_sha256
from interp.storage.paths import expanded
from interp.storage.provenance import library_versions
from interp.storage.sealed_json import read_sealed, write_sealed
from interp.storage.tensor_files import read_safetensors
from interp.training.reward_models import RewardModel, RewardModelConfig

_FORMAT, _VERSION = "interp-reward-model", 1
_AGAIN = "train the reward model again"
ADAPTER = "adapter"
"""Folder of the adapter, where there is one."""


def reward_record(model: ChatModel, preferences: PreferenceSet, config: RewardModelConfig) -> dict[str, Any]:
    """What a reward model is made of, as far as it is known before it is fitted."""
    return {
        "base": {"name": model.name, "adapter": model.adapter, "weights_hash": model.weights_hash},
        "tokenizer_hash": tokenizer_hash(model.tokenizer),
        "template_hash": model.template_hash,
        "preferences": preferences.provenance,
        "config": asdict(config),
        "versions": library_versions(),
    }


def save_reward_model(reward: RewardModel, folder: str | Path) -> Path:
    """Write a reward model to a folder; one with an adapter stands there already."""
    folder = expanded(folder)
    folder.mkdir(parents=True, exist_ok=True)
    head = folder / "head.safetensors"
    write_tensors(head, {"weight": reward.weight.contiguous()})
    adapter = folder / ADAPTER / "adapter_model.safetensors"
    content = {
        "about": json.loads(json.dumps(dict(reward.about))),
        "bias": reward.bias,
        "head_sha256": file_sha256(head),
        "adapter_sha256": file_sha256(adapter) if reward.about["config"]["method"] == "lora" else None,
    }
    write_sealed(folder / "reward.json", _FORMAT, _VERSION, content)
    return folder


def load_reward_model(folder: str | Path, *, model: ChatModel | None = None) -> RewardModel:
    """A stored reward model.

    Args:
        model: the base model, where it is loaded already; it stays as it is.

    Raises:
        ValueError: no reward model there, a damaged one, or one of another base model or tokenizer.
    """
    folder = expanded(folder)
    content = read_sealed(folder / "reward.json", _FORMAT, _VERSION, what="a reward model", remedy=_AGAIN)
    about: Mapping[str, Any] = content["about"]
    base = about["base"]
    model = load(base["name"], adapter=base["adapter"]) if model is None else model
    if tokenizer_hash(model.tokenizer) != about["tokenizer_hash"]:
        raise ValueError(
            f"{folder} reads the tokens of {base['name']}, and {model.name} has another tokenizer; {_AGAIN} on it"
        )
    if model.weights_hash != base["weights_hash"] or model.template_hash != about["template_hash"]:
        raise ValueError(
            f"{folder} was trained on other weights or another chat template than {model.name} has now; load "
            f"{base['name']} as it was, or {_AGAIN}"
        )
    files = {"head.safetensors": content["head_sha256"]}
    if content["adapter_sha256"] is not None:
        files[f"{ADAPTER}/adapter_model.safetensors"] = content["adapter_sha256"]
    for name, digest in files.items():
        if not (folder / name).is_file() or file_sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} is missing or damaged; {_AGAIN}")
    weight = read_safetensors(folder / "head.safetensors", remedy=_AGAIN).tensors["weight"]
    backbone = model if content["adapter_sha256"] is None else adapted_copy(model, folder / ADAPTER)
    return RewardModel(model=backbone, weight=weight, bias=float(content["bias"]), about=about)


def adapted_copy(model: ChatModel, adapter: Path) -> ChatModel:
    """A second model with an adapter merged into it, which shares all weights that the adapter leaves alone."""
    before = {name: value.detach().clone() for name, value in model.hf.named_parameters()}
    with merged_adapter(model.hf, str(adapter), shown=model.name):
        changed = {
            name: value.detach().clone()
            for name, value in model.hf.named_parameters()
            if not value.equal(before[name])
        }
    return copy_with_weights(model, changed)
