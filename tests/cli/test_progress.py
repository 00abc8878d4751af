"""Commands on a terminal show how far each phase is, with the time left, and nothing after --quiet."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.progress import Progress, TimeRemainingColumn

from interp.cli import options
from interp.directions import Direction
from interp.storage.direction_files import write_direction
from tests.cli.commands import passed


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """Label, total and progress of each bar, as a command on a terminal draws it."""
    drawn: list[list[Any]] = []
    add_task = Progress.add_task

    def begin(bar: Progress, label: str, *, total: float | int) -> Any:
        assert any(isinstance(column, TimeRemainingColumn) for column in bar.columns)
        drawn.append([label, total, 0])
        return add_task(bar, label, total=total)

    def advance(_bar: Progress, task: int, size: float | int = 1) -> None:  # noqa: ARG001 (its signature)
        drawn[-1][2] += size

    terminal = SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(options, "sys", terminal)
    monkeypatch.setattr(Progress, "add_task", begin)
    monkeypatch.setattr(Progress, "advance", advance)
    return drawn


def test_each_phase_is_shown_and_quiet_silences_it(
    saved_tiny: Path, tmp_path: Path, phases: list[list[Any]]
) -> None:
    direction = Direction(vector=torch.ones(32), layer=1, position="t_inst")
    file = write_direction(tmp_path / "direction.safetensors", direction)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Hi\nName a colour\nWhy?")
    commands = {
        "steer": ("steer", prompts, "-m", saved_tiny, "-d", file, "--max-new-tokens", 4),
        "collect": ("collect", prompts, "-m", saved_tiny, "--out", tmp_path / "acts.safetensors"),
        "directions": (
            "directions",
            "-m",
            saved_tiny,
            "--n-prompts",
            4,
            "--n-test",
            4,
            "--out",
            tmp_path / "d",
        ),
    }
    expected = {
        "steer": [["generating tokens", 12]] * 2,  # plain, then steered
        "collect": [["collecting activations", 3]],
        "directions": [["collecting activations", 16]],
    }
    for name, command in commands.items():
        phases.clear()
        passed(*command)
        assert [phase[:2] for phase in phases] == expected[name]
        assert all(0 < done <= total for _, total, done in phases)
        if name != "steer":  # answers may end early
            assert phases[0][2] == phases[0][1]
        phases.clear()
        passed("--quiet", *command)
        assert phases == []
