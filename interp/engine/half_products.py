"""Matrix products of frozen float32 weights in bfloat16, with gradients for what is multiplied.

A processor with AMX multiplies bfloat16 three to four times as fast as float32, and two thirds of a pass with gradients
are products. Only the two factors are rounded (8 bits of precision); sums, norms, attention and the residual stream
stay in float32. The weights need no gradient, so a product keeps nothing of its input for the way back.

    with model.lock, half_products(HalfWeights(model)):
        model.hf(...)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from interp.models.chat_model import ChatModel
from interp.models.threads import swapped_forwards


class HalfWeights:
    """The linear layers' weights of a float32 model, rounded to bfloat16: half as much memory again."""

    def __init__(self, model: ChatModel) -> None:
        parts: list[Any] = [*(block.module for block in model.blocks), model.hf.get_output_embeddings()]
        modules = [m for part in parts for m in part.modules() if type(m) is nn.Linear]
        wide = model.dtype == torch.float32
        self.weights = {m: m.weight.detach().to(torch.bfloat16) for m in modules if wide}
        """By layer; empty for a model that is not in float32."""


@contextmanager
def half_products(weights: HalfWeights | None) -> Iterator[None]:
    """Passes of this thread inside the context multiply by these weights; None leaves the model as it is.

    The caller holds the model's lock.
    """
    made = {} if weights is None else weights.weights
    with swapped_forwards({module: partial(_linear, module, weight) for module, weight in made.items()}):
        yield


def _linear(module: nn.Linear, weight: Tensor, x: Tensor) -> Tensor:
    y = _Product.apply(x, weight)
    return y if module.bias is None else y + module.bias  # pyright: ignore[reportOptionalOperand, reportReturnType]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return nn.functional.linear(x.to(weight.dtype), weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return (gradient.to(ctx.weight.dtype) @ ctx.weight).to(gradient.dtype), None
