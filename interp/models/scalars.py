"""Single numbers as users write them, of Python, NumPy or torch: converted once, where they come in.

whole_number(np.int64(3), "n_prompts", at_least=1)      # 3
whole_number(True, "seed")                              # ValueError: seed must be a whole number, got True
"""

import math
import operator
from typing import Any


def whole_number(value: Any, name: str, *, at_least: int | None = None) -> int:
    """A count, index or seed as an int of Python.

    Args:
        name: name of the argument in messages.
        at_least: its smallest value.

    Raises:
        ValueError: a truth value, a fraction, several numbers, something else, or a number that is too small.
    """
    try:
        if is_truth_value(value):
            raise TypeError
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # torch has an error of its own for several numbers
        raise ValueError(f"{name} must be a whole number, got {value!r:.60}") from None
    if at_least is not None and number < at_least:
        raise ValueError(f"{name} must be {at_least} or more, got {value!r:.60}")
    return number


def finite_number(value: Any, name: str) -> float:
    """A strength, share or temperature as a float.

    Raises:
        ValueError: a truth value, NaN, infinity, more than a float holds, several numbers or something else.
    """
    try:
        if is_truth_value(value) or isinstance(value, (str, bytes)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {value!r:.60}")
    return number


def is_truth_value(value: Any) -> bool:
    """Whether a value is a bool of Python, or a number of NumPy or torch that stands for one: never a count."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
