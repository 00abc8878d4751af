"""Layers as users write them: an int, a range, a list or None; negative ones count from the end.

layer_list(None, n_layers=3)            # (0, 1, 2)
layer_list(-1, n_layers=3)              # (2,)
layer_list(range(1, 3), n_layers=3)     # (1, 2)
"""

import operator
from collections.abc import Sequence
from typing import Any

Layers = int | Sequence[int] | None
"""One layer, several (a range, a list, a tuple), or None for all."""


def layer_list(layers: Any, *, n_layers: int, of: str = "this model") -> tuple[int, ...]:
    """The layers meant, each in 0..n_layers-1, in the order given.

    Args:
        layers: as `Layers`, or anything else with whole numbers in it, such as an array.
        n_layers: how many there are to choose from.
        of: whose layers they are, for messages.

    Raises:
        ValueError: no layer, one that is no whole number, or one out of range.
    """
    if layers is None:
        return tuple(range(n_layers))
    rule = "layers must be an int, a range, a list of ints or None for all"
    if isinstance(layers, (str, bytes)):
        raise ValueError(f"{rule}; got {layers!r}")
    wanted = layers if hasattr(layers, "__iter__") else [layers]
    found = []
    for layer in wanted:
        try:
            number = operator.index(layer)
        except TypeError:
            raise ValueError(f"{rule}; got {layer!r}") from None
        if not -n_layers <= number < n_layers:
            raise ValueError(f"layer must be in 0..{n_layers - 1}, got {number}; {of} has {n_layers} layers")
        found.append(number % n_layers)
    if not found:
        raise ValueError(f"{rule}; got none")
    return tuple(found)
