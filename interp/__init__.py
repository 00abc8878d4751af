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
    from interp.data.prompt_sets import PromptSet as PromptSet
    from interp.data.prompts import load_prompts as load_prompts
    from interp.detectors.latent_guard import LatentGuard as LatentGuard
    from interp.detectors.machine_text.detector import MachineTextDetector as MachineTextDetector
    from interp.detectors.machine_text.gltr import gltr as gltr
    from interp.detectors.machine_text.reading import score_texts as score_texts
    from interp.detectors.machine_text.watermark import Watermark as Watermark
    from interp.directions import Direction as Direction
    from interp.directions import cosine as cosine
    from interp.directions import difference_in_means as difference_in_means
    from interp.directions import project as project
    from interp.engine.activation_files import read_activations as read_activations
    from interp.engine.activation_files import store_activations as store_activations
    from interp.engine.activations import collect as collect
    from interp.engine.activations import collect_means as collect_means
    from interp.engine.applying import apply as apply
    from interp.engine.generation import generate as generate
    from interp.engine.generation import stream as stream
    from interp.engine.interventions import Ablate as Ablate
    from interp.engine.interventions import Add as Add
    from interp.engine.safety_prompts import SafetyPrompt as SafetyPrompt
    from interp.engine.store_filling import fill_store as fill_store
    from interp.engine.stored_activations import using_store as using_store
    from interp.experiments.comparing import compare_runs as compare_runs
    from interp.experiments.running import open_run as open_run
    from interp.experiments.running import run as run
    from interp.experiments.running import runs as runs
    from interp.models.chat_model import ChatModel as ChatModel
    from interp.models.chat_model import load as load
    from interp.models.sites import SITES as SITES
    from interp.models.tokens import tokenize as tokenize
    from interp.playgrounds.widget import playground as playground
    from interp.representations import heads as heads
    from interp.representations.steering import find_directions as find_directions
    from interp.representations.steering import steer as steer
    from interp.representations.steering import steer_with as steer_with
    from interp.storage.activation_store import ActivationStore as ActivationStore
    from interp.storage.direction_files import read_direction as read_direction
    from interp.storage.direction_files import write_direction as write_direction
    from interp.tracking.spec import TrackingSpec as TrackingSpec
    from interp.tracking.tracker import track as track
    from interp.tracking.trajectory import Trajectory as Trajectory
    from interp.training.recovery import RecoveryConfig as RecoveryConfig
    from interp.training.recovery import recover as recover
    from interp.training.soft_prompts import safety_prompt as safety_prompt

_NAMES = {
    "load": "interp.models.chat_model",
    "ChatModel": "interp.models.chat_model",
    "load_prompts": "interp.data.prompts",
    "tokenize": "interp.models.tokens",
    "collect": "interp.engine.activations",
    "collect_means": "interp.engine.activations",
    "store_activations": "interp.engine.activation_files",
    "read_activations": "interp.engine.activation_files",
    "Direction": "interp.directions",
    "project": "interp.directions",
    "cosine": "interp.directions",
    "difference_in_means": "interp.directions",
    "SITES": "interp.models.sites",
    "PromptSet": "interp.data.prompt_sets",
    "read_direction": "interp.storage.direction_files",
    "write_direction": "interp.storage.direction_files",
    "Ablate": "interp.engine.interventions",
    "Add": "interp.engine.interventions",
    "apply": "interp.engine.applying",
    "generate": "interp.engine.generation",
    "stream": "interp.engine.generation",
    "heads": "interp.representations",
    "find_directions": "interp.representations.steering",
    "steer": "interp.representations.steering",
    "steer_with": "interp.representations.steering",
    "playground": "interp.playgrounds.widget",
    "open_run": "interp.experiments.running",
    "run": "interp.experiments.running",
    "runs": "interp.experiments.running",
    "compare_runs": "interp.experiments.comparing",
    "LatentGuard": "interp.detectors.latent_guard",
    "MachineTextDetector": "interp.detectors.machine_text.detector",
    "score_texts": "interp.detectors.machine_text.reading",
    "Watermark": "interp.detectors.machine_text.watermark",
    "gltr": "interp.detectors.machine_text.gltr",
    "TrackingSpec": "interp.tracking.spec",
    "Trajectory": "interp.tracking.trajectory",
    "track": "interp.tracking.tracker",
    "recover": "interp.training.recovery",
    "RecoveryConfig": "interp.training.recovery",
    "safety_prompt": "interp.training.soft_prompts",
    "SafetyPrompt": "interp.engine.safety_prompts",
    "ActivationStore": "interp.storage.activation_store",
    "using_store": "interp.engine.stored_activations",
    "fill_store": "interp.engine.store_filling",
}
__all__ = sorted(_NAMES)  # pyright: ignore[reportUnsupportedDunderAll] (it reads the imports above)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # loads a parser of e-mail

        return version("interp-workbench")
    if name not in _NAMES:
        raise AttributeError(f"module 'interp' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return __all__


if "IPython" in sys.modules:  # a user's mistake is one line there
    import_module("interp.display.errors").short_errors()
    import_module("interp.display.errors").plain_notes()
