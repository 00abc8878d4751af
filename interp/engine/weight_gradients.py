"""Gradients of a model's weights, summed over backward passes outside of `.grad`.

    sums: dict[str, Tensor] = {}
    with differentiable(model, trainable=list(weights.values())) as through, summed_gradients(weights, sums):
        for batch in batches:
            loss(through.states(batch, layer=19)).backward()
    sums["model.layers.0.mlp.up_proj.weight"]               # float32, the sum over the batches

One gradient of each weight is in memory at a time, besides that of the weight whose gradient is being computed.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn


@contextmanager
def summed_gradients(weights: Mapping[str, nn.Parameter], sums: dict[str, Tensor]) -> Iterator[None]:
    """Inside the context, every backward pass adds the gradients of these weights to `sums`, in float32.

    What the weights have in `.grad` is there again when the context exits.

    Args:
        sums: gradients by name, which is added to.
    """
    before = {name: weight.grad for name, weight in weights.items()}
    with ExitStack() as stack:
        try:
            for name, weight in weights.items():
                weight.grad = None
                handle = weight.register_post_accumulate_grad_hook(partial(_move, sums, name))
                stack.callback(handle.remove)
            yield
        finally:
            for name, weight in weights.items():
                weight.grad = before[name]


def _move(sums: dict[str, Tensor], name: str, weight: Tensor) -> None:
    """Add a weight's gradient to the sums, and free it."""
    gradient = weight.grad
    assert gradient is not None  # the hook runs after it was written
    weight.grad = None
    if name in sums:
        sums[name] += gradient  # in place; promotes half precision
    else:
        sums[name] = gradient.to(torch.float32)
