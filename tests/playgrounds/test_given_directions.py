"""What a playground takes as directions."""

from pathlib import Path

import pytest
import torch

from interp.directions import Direction
from interp.models.chat_model import ChatModel
from interp.playgrounds.given_directions import check_entries, named_directions
from interp.storage.direction_files import write_direction


def test_directions_and_files_with_and_without_names(tiny: ChatModel, tmp_path: Path) -> None:
    direction = Direction(vector=torch.randn(32), layer=1, position="t_inst")
    file = write_direction(tmp_path / "refusal.safetensors", direction)
    assert list(named_directions(tiny, direction)) == ["t_inst 1"]
    assert list(named_directions(tiny, [direction, file])) == ["t_inst 1", "refusal"]
    assert list(named_directions(tiny, {"mine": file})) == ["mine"]
    for wrong in (direction.vector, [direction.vector.numpy()], {"mine": None}):
        with pytest.raises(
            ValueError, match=r"takes Directions and direction files, got .*do not know their layer"
        ):
            check_entries(wrong)
