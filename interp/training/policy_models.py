"""A policy in training: the network, the same policy as a plain model for rollouts, and its reference."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interp.models.adapted_models import copy_with_weights
from interp.models.chat_model import ChatModel
from interp.training.config import TrainConfig, plain_adapter
from interp.training.policy_config import PolicyConfig
from interp.training.policy_updates import PolicyNetwork, PolicyOutputs
from interp.training.runner import trainable_module
from interp.training.saving import write_checkpoint


class LivePolicy:
    """A policy in training as a plain model for rollouts: its adapter is merged into a copy of the weights it changes.

    Args:
        model: the base model.
        adapted: PEFT's module over a model with the same weights, or the whole model in training.
    """

    def __init__(self, model: ChatModel, adapted: Any) -> None:
        self._layers = {
            name.removeprefix("base_model.model.") + ".weight": module
            for name, module in adapted.named_modules()
            if hasattr(module, "get_delta_weight")
        }
        weights = {name: layer.get_base_layer().weight for name, layer in self._layers.items()}
        self._model = copy_with_weights(model, weights) if weights else model
        self._own: dict[str, Tensor] = dict(self._model.hf.named_parameters())

    @torch.no_grad()
    def refreshed(self) -> ChatModel:
        """The model with the adapter as it is now."""
        for name, layer in self._layers.items():
            base = layer.get_base_layer().weight
            self._own[name].copy_(base + layer.get_delta_weight("default").to(base))
        return self._model


class PolicyInTraining(NamedTuple):
    """What an optimiser of policies works on."""

    network: PolicyNetwork
    """The network that is trained."""
    live: LivePolicy
    """The same policy for rollouts."""
    reference: Callable[..., PolicyOutputs]
    """Outputs of the policy before training."""
    save: Callable[[Path], None]
    """Writes the adapter or model to a folder."""


@contextmanager
def policy_in_training(
    model: ChatModel, config: PolicyConfig, start: str | Path | None
) -> Iterator[PolicyInTraining]:
    """A policy that starts from the model, or from an adapter on it; the model stays as it is."""
    if start is not None and config.method == "full":
        raise ValueError(f"full training continues no adapter: load {start} as the model and leave start out")
    torch.manual_seed(config.seed)
    train = plain_adapter(
        method=config.method, rank=config.rank, target_modules=config.target_modules, seed=config.seed
    )
    if config.method == "full":
        hf = copy.deepcopy(model.hf).requires_grad_(True)
        policy = ChatModel(hf, model.tokenizer, name=model.name, chat_template=model.chat_template)
        network = PolicyNetwork(hf, hf, config.temperature)
        reference = PolicyNetwork(model.hf, model.hf, config.temperature)
        live = LivePolicy(policy, hf)
        yield PolicyInTraining(network, live, reference, lambda out: _written(hf, out, policy, train))
        return
    twin = copy_with_weights(model, {})
    with trainable_module(twin, train, start) as adapted:
        adapted.eval()  # there is no dropout; what is sampled from is what is trained
        network = PolicyNetwork(adapted, twin.hf, config.temperature)
        frozen = {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}

        def reference(*batch: Tensor) -> PolicyOutputs:
            """The network as it was before training: its adapter off, or at its first values."""
            if start is None:
                with adapted.disable_adapter():
                    return network(*batch)
            now = {name: p for name, p in adapted.named_parameters() if name in frozen}
            kept = {name: p.detach().clone() for name, p in now.items()}
            for name, p in now.items():
                p.data.copy_(frozen[name])
            try:
                return network(*batch)
            finally:
                for name, p in now.items():
                    p.data.copy_(kept[name])

        live = LivePolicy(model, adapted)
        yield PolicyInTraining(network, live, reference, lambda out: _written(adapted, out, twin, train))


def _written(module: Any, out: Path, model: ChatModel, config: TrainConfig) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_checkpoint(module, out, model, config)
