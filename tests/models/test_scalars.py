"""Numbers as users write them."""

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from interp.models.scalars import finite_number, whole_number


@pytest.mark.parametrize("given", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_every_kind_of_whole_number_is_an_int(given: Any) -> None:
    assert type(whole_number(given, "n")) is int and whole_number(given, "n", at_least=3) == 3


@pytest.mark.parametrize(
    "given",
    [
        True,
        np.True_,
        torch.tensor(True),
        3.0,
        np.float32(3),
        float("nan"),
        "3",
        None,
        [3],
        torch.tensor([1, 2]),
    ],
)
def test_what_is_no_whole_number_is_named(given: Any) -> None:
    with pytest.raises(ValueError, match="n_prompts must be a whole number, got"):
        whole_number(given, "n_prompts")


def test_a_whole_number_may_be_too_small() -> None:
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        whole_number(-1, "seed", at_least=0)


@pytest.mark.parametrize("given", [2, 2.0, np.float16(2), np.int8(2), torch.tensor(2.0), Decimal(2)])
def test_every_kind_of_number_is_a_float(given: Any) -> None:
    assert type(finite_number(given, "temperature")) is float and finite_number(given, "t") == 2.0


@pytest.mark.parametrize(
    "given",
    [True, np.True_, float("nan"), float("inf"), 10**400, "2", b"2", None, 2 + 1j, torch.tensor([1.0, 2.0])],
)
def test_what_is_no_finite_number_is_named(given: Any) -> None:
    with pytest.raises(ValueError, match="temperature must be a finite number, got"):
        finite_number(given, "temperature")
