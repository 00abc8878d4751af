"""interp: find, steer and track harmfulness and refusal inside chat models.

    import interp
    model = interp.load("smollm2-safe")
    prompts = interp.load_prompts("builtin")

Names below are loaded at first use, so that `import interp` stays fast; every other name lives in its module.
"""

import sys
from importlib import import_module
from typing import Any

_NAMES = {
    "load": "interp.models",
    "ChatModel": "interp.models",
    "load_prompts": "interp.prompts",
    "tokenize": "interp.chat",
    "collect": "interp.activations",
    "collect_means": "interp.activations",
    "Direction": "interp.directions",
    "read_direction": "interp.formats",
    "write_direction": "interp.formats",
    "Ablate": "interp.interventions",
    "Add": "interp.interventions",
    "apply": "interp.interventions",
    "generate": "interp.generation",
    "stream": "interp.generation",
    "find_directions": "interp.steering",
    "steer": "interp.steering",
    "playground": "interp.playgrounds",
    "load_result": "interp.results",
    "open_run": "interp.runs",
    "run": "interp.runs",
    "LatentGuard": "interp.guard",
    "Probe": "interp.probes",
    "Trajectory": "interp.trajectories",
    "track": "interp.tracking",
}
__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'interp' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return __all__


if "IPython" in sys.modules:  # a user's mistake is one line there
    import_module("interp.display").short_errors()
