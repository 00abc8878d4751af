"""interp: find, steer and track harmfulness and refusal inside chat models.

    import interp
    model = interp.load("smollm2-safe")
    prompts = interp.load_prompts("builtin")

Names below are loaded at first use, so that `import interp` stays fast; every other name lives in its module.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for editors and type checkers
    from interp.activations import collect as collect
    from interp.activations import collect_means as collect_means
    from interp.chat import tokenize as tokenize
    from interp.directions import Direction as Direction
    from interp.formats import read_direction as read_direction
    from interp.formats import write_direction as write_direction
    from interp.generation import generate as generate
    from interp.generation import stream as stream
    from interp.guard import LatentGuard as LatentGuard
    from interp.interventions import Ablate as Ablate
    from interp.interventions import Add as Add
    from interp.interventions import apply as apply
    from interp.models import ChatModel as ChatModel
    from interp.models import load as load
    from interp.playgrounds import playground as playground
    from interp.probes import Probe as Probe
    from interp.prompts import load_prompts as load_prompts
    from interp.results import load_result as load_result
    from interp.runs import open_run as open_run
    from interp.runs import run as run
    from interp.steering import find_directions as find_directions
    from interp.steering import steer as steer
    from interp.tracking import track as track
    from interp.trajectories import Trajectory as Trajectory

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
__all__ = sorted(_NAMES)  # pyright: ignore[reportUnsupportedDunderAll] (it reads the imports above)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'interp' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return __all__


if "IPython" in sys.modules:  # a user's mistake is one line there
    import_module("interp.display").short_errors()
