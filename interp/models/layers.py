"""Layers as users write them: an int, a range, a list or None; negative ones count from the end.

layer_list(None, n_layers=3)            # (0, 1, 2)
layer_list(-1, n_layers=3)              # (2,)
layer_list(range(1, 3), n_layers=3)     # (1, 2)
"""

from collections.abc import Sequence
from typing import Any

from interp.models.scalars import is_truth_value, whole_number

Layers = int | Sequence[int] | None
"""One layer, several (a range, a list, a tuple), or None for all."""

MAX_LAYERS = 10_000
"""Layers that can be named: more than any model has, and few enough to check one by one."""


def written_layers(layers: Any) -> tuple[int, ...] | None:
    """Layers as the user wrote them, each an integer; None is all.

    Raises:
        ValueError: no layer, too many, or one that is not an integer.
    """
    if layers is None:
        return None
    rule = "layers must be an int, a range, a list of ints or None for all"
    if isinstance(layers, (str, bytes, dict)):
        raise ValueError(f"{rule}; got {layers!r:.60}")
    if is_truth_value(layers):
        # torch takes each truth value of a mask for the layer 0 or 1.
        raise ValueError(
            f"{rule}; got truth values, {layers!r:.60}: give the numbers, such as mask.nonzero()[:, 0]"
        )
    resolved = []
    is_one = not hasattr(layers, "__iter__") or getattr(layers, "ndim", None) == 0
    for layer in [layers] if is_one else layers:
        if len(resolved) == MAX_LAYERS:
            raise ValueError(f"{rule}; got more than {MAX_LAYERS:,}")
        try:
            resolved.append(whole_number(layer, "layer"))
        except ValueError:
            raise ValueError(f"{rule}; got {layer!r:.60}") from None
    if not resolved:
        raise ValueError(f"{rule}; got none")
    return tuple(resolved)


def layer_list(layers: Any, *, n_layers: int, of: str = "this model") -> tuple[int, ...]:
    """Resolve layers to indices in 0..n_layers-1, in the given order.

    Args:
        layers: as `Layers`, or any other sequence of integers, such as an array.
        n_layers: number of layers.
        of: name of the model in messages.

    Raises:
        ValueError: no layer, one that is not an integer, or one out of range.
    """
    written = written_layers(layers)
    if written is None:
        return tuple(range(n_layers))
    for layer in written:
        if not -n_layers <= layer < n_layers:
            raise ValueError(f"layer must be in 0..{n_layers - 1}, got {layer}; {of} has {n_layers} layers")
    return tuple(layer % n_layers for layer in written)


def check_layer(layer: int, upper: int, n_layers: int, *, of: str) -> int:
    """A possibly negative layer as an int of Python, which is one of `upper` layers.

    Raises:
        ValueError: no whole number, or out of range.
    """
    layer = whole_number(layer, "layer")
    if not -upper <= layer < upper:
        raise ValueError(f"layer must be in 0..{upper - 1}, got {layer}; {of} has {n_layers} layers")
    return layer
