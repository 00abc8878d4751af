"""What a result carries of where it comes from."""

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

_LIBRARIES = (
    "interp-workbench",
    "torch",
    "transformers",
    "transformer-lens",
    "numpy",
    "scikit-learn",
    "plotly",
)


def provenance(model: Mapping[str, Any], prompts: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """What a result or direction carries of where it comes from.

    Args:
        model: `ChatModel.provenance`.
        prompts: `PromptSet.provenance`.
        config: an experiment's frozen `Config`, with a `seed`.
    """
    return {
        **model,
        "prompts": dict(prompts),
        "config": asdict(config),
        "seed": config.seed,
        "versions": library_versions(),
        "threads": torch.get_num_threads(),
    }


def library_versions() -> dict[str, str]:
    """Python's and the main libraries' versions."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found
