"""Tokens that a run really runs, counted at the model's blocks, against those that its plan says."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from interp.engine.costs import MachineSpeed
from interp.experiments.plans import Plan, planned
from interp.models.chat_model import ChatModel
from interp.models.sources import ModelSource
from interp.storage.typed_json import to_plain

_counted: dict[str, float] = {}
"""Tokens by name of the run; fixtures of runs count, tests read."""


@contextmanager
def counting(name: str, model: ChatModel) -> Iterator[None]:
    """Inside the context every token that runs through a block of this architecture counts as 1 / n_layers.

    Forward passes count, also those with gradients; what checkpointed gradients run again on the way back does not.
    """
    kind: Any = type(model.blocks[0].module)
    forward, n_layers = kind.forward, model.n_layers
    _counted[name] = 0.0

    @wraps(forward)
    def counted(self: Any, *args: Any, **options: Any) -> Any:
        hidden = args[0] if args else options["hidden_states"]
        if torch._C._current_graph_task_id() == -1:
            _counted[name] += hidden.shape[0] * hidden.shape[1] / n_layers
        return forward(self, *args, **options)

    kind.forward = counted
    try:
        yield
    finally:
        kind.forward = forward


def assert_planned(name: str, model: Path, config: Any, *, within: float = 1.5) -> None:
    """The plan of an experiment says as many tokens as its run was counted to run, by a factor."""
    plan = _plan(name, model, config)
    said = plan.work.run_tokens + plan.work.decoded_tokens
    ratio = said / _counted[name]
    assert 1 / within < ratio < within, f"{name}: {said} planned, {_counted[name]:.0f} run, x{ratio:.2f}"


def _plan(name: str, model: Path, config: Any) -> Plan:
    speed = MachineSpeed(reading=1e9, decoding=1e9)
    return planned(name, model=ModelSource(str(model)), settings=to_plain(config, type(config)), speed=speed)
