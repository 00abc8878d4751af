"""Layers as users write them."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from interp.models.layers import layer_list


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, (0, 1, 2)),
        (1, (1,)),
        (-1, (2,)),
        (range(1, 3), (1, 2)),
        ([2, -3], (2, 0)),
        ((1,), (1,)),
        (np.arange(2), (0, 1)),
        (np.int64(2), (2,)),
        (torch.tensor([0, 2]), (0, 2)),
        (torch.tensor(-1), (2,)),
    ],
)
def test_layers_are_resolved_once(given: Any, found: tuple[int, ...]) -> None:
    assert layer_list(given, n_layers=3) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, r"layer must be in 0\.\.2, got 3; tiny has 3 layers"),
        ([0, -4], r"layer must be in 0\.\.2, got -4"),
        ([], "layers must be an int, a range, a list of ints or None for all; got none"),
        ([1.5], "got 1.5"),
        ("1", "got '1'"),
        (True, "got truth values, True"),
        ([0, True], "got True"),
        (torch.tensor([True, False, True]), r"got truth values, .*give the numbers, such as mask\.nonzero"),
        (np.array([True, False, True]), "got truth values"),
        ({0: 1}, "got {0: 1}"),
        (range(10**12), "got more than 10,000"),
        (itertools.count(), "got more than 10,000"),
    ],
)
def test_layers_that_are_not_there(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_list(given, n_layers=3, of="tiny")
