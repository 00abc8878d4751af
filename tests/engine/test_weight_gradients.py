"""Gradients summed outside of `.grad`."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp.engine.weight_gradients import summed_gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_those_of_autograd_and_grad_stays_as_it_was(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3).to(dtype), torch.randn(5, 4).to(dtype)
    weight: Any = layer.weight
    weight.grad = kept = torch.ones_like(weight)
    sums: dict[str, Tensor] = {}
    with summed_gradients({"w": weight}, sums):
        for row in x:
            layer(row).square().sum().backward()
            assert weight.grad is None  # freed as soon as it was added
    assert weight.grad is kept and torch.equal(kept, torch.ones_like(weight))
    gradients = [torch.autograd.grad(layer(row).square().sum(), weight)[0].float() for row in x]
    torch.testing.assert_close(sums["w"], torch.stack(gradients).sum(0))
    assert sums["w"].dtype == torch.float32 and sums.keys() == {"w"}
    layer(x[0]).sum().backward()  # outside the context gradients are PyTorch's again
    assert not torch.equal(weight.grad, torch.ones_like(weight))


def test_grad_is_as_before_after_an_exception() -> None:
    layer, sums = nn.Linear(2, 2), dict[str, Tensor]()
    with pytest.raises(KeyError), summed_gradients({"w": layer.weight}, sums):
        layer(torch.ones(2)).sum().backward()
        raise KeyError("stop")
    assert layer.weight.grad is None and not layer.weight._post_accumulate_grad_hooks
    assert "w" in sums
