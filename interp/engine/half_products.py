"""Matrix products of float32 weights in bfloat16, with gradients.

A processor with AMX multiplies bfloat16 three to four times as fast as float32, and two thirds of a pass with gradients
are products. Only the two factors are rounded (8 bits of precision); sums, norms, attention and the residual stream
stay in float32. A product keeps its rounded input for the way back where its weight needs a gradient, and nothing
otherwise; layers that are trained, such as an adapter's, multiply as they are.

    with model.lock, half_products(HalfWeights(model)):
        model.hf(...)
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from interp.models.chat_model import ChatModel
from interp.models.threads import swapped_forwards


class HalfWeights:
    """The linear layers' weights of a float32 model, rounded to bfloat16: half as much memory again.

    Args:
        trained: parameters that are trained, such as an adapter's; their layers are left out.
        below: passes do not reach this block, so that it and what follows are left out.
    """

    def __init__(
        self, model: ChatModel, *, trained: Iterable[nn.Parameter] = (), below: int | None = None
    ) -> None:
        parts: list[Any] = [block.module for block in model.blocks[:below]]
        parts += [model.hf.get_output_embeddings()] if below is None else []
        modules = [m for part in parts for m in part.modules() if type(m) is nn.Linear]
        own = set(map(id, trained))
        rounded = [m for m in modules if id(m.weight) not in own and model.dtype == torch.float32]
        self.weights = {m: m.weight.detach().to(torch.bfloat16) for m in rounded}
        """By layer, as the weights are now; empty for a model that is not in float32."""


@contextmanager
def half_products(weights: HalfWeights | None) -> Iterator[None]:
    """Passes of this thread inside the context multiply by these weights; None leaves the model as it is.

    The caller holds the model's lock.
    """
    made = {} if weights is None else weights.weights
    with swapped_forwards({module: partial(_linear, module, weight) for module, weight in made.items()}):
        yield


def _linear(module: nn.Linear, weight: Tensor, x: Tensor) -> Tensor:
    y = _Product.apply(x, weight, module.weight)
    return y if module.bias is None else y + module.bias  # pyright: ignore[reportOptionalOperand, reportReturnType]


class _Product(torch.autograd.Function):
    """x W^T by a rounded copy of W, whose gradient goes to W itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor, weight: Tensor) -> Tensor:
        half = x.to(rounded.dtype)
        ctx.rounded, ctx.wide = rounded, weight.dtype
        ctx.half = half if weight.requires_grad else None
        return nn.functional.linear(half, rounded).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor | None]:
        gradient = gradients[0].to(ctx.rounded.dtype)
        of_weight = None
        if ctx.half is not None:
            of_weight = (gradient.flatten(0, -2).mT @ ctx.half.flatten(0, -2)).to(ctx.wide)
        return (gradient @ ctx.rounded).to(gradients[0].dtype), None, of_weight
