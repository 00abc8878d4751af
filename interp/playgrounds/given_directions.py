"""The directions that a playground is given: one or several, as values or files, with or without names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.directions import Direction
from interp.models.chat_model import ChatModel
from interp.storage.direction_files import read_direction

Directions = (
    Direction | str | Path | Mapping[str, "Direction | str | Path"] | Sequence["Direction | str | Path"]
)
"""What a playground takes as directions."""


def named_directions(model: ChatModel, directions: Directions) -> dict[str, Direction]:
    """Directions by name, read from files where necessary.

    Raises:
        ValueError: none, one that cannot be read, or one of another width than the model's.
    """
    if isinstance(directions, (Direction, str, Path)):
        directions = [directions]
    check_entries(directions)
    if not isinstance(directions, Mapping):
        directions = {_name(entry, i): entry for i, entry in enumerate(directions)}
    if not directions:
        raise ValueError("a playground needs at least one direction; leave them out to have two found")
    named = {
        name: entry if isinstance(entry, Direction) else read_direction(entry)
        for name, entry in directions.items()
    }
    for direction in named.values():
        direction.check_width(model.d_model, model.name)
        model.layer(direction.layer)
    return named


def check_entries(given: Any) -> None:
    """Raise a ValueError for what is neither a direction nor a file, such as a bare vector."""
    several = isinstance(given, (list, tuple))
    for entry in given.values() if isinstance(given, Mapping) else given if several else [given]:
        if not isinstance(entry, (Direction, str, Path)):
            raise ValueError(
                f"a playground takes Directions and direction files, got {type(entry).__name__}; bare numbers do not "
                "know their layer: Direction(vector=..., layer=..., position=...)"
            )


def _name(entry: Direction | str | Path, i: int) -> str:
    return f"{entry.position} {i + 1}" if isinstance(entry, Direction) else Path(entry).stem
