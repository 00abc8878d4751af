"""A run that is killed before any of its changes to the disk continues to the same result and leaves nothing else."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from interp.storage.run_folders import write_run
from interp.storage.stages import open_stages
from tests.torture.kills import killed_everywhere


@dataclass(frozen=True, kw_only=True)
class Sum:
    total: int


def compute(out: Path) -> None:
    """A run of three stages, one with files of its own."""
    with open_stages(out, key={"seed": 0}) as stages:
        numbers = stages.keep("numbers", lambda: [1, 2, 3])
        tensors = stages.keep("tensors", lambda: {"t": torch.ones(2)})
        file = stages.workspace("files") / "note.txt"
        file.write_text("x")
        total = stages.keep("total", lambda: sum(numbers) + int(tensors["t"].sum()), int)
        write_run(
            out, "sum", Sum(total=total), tensors=tensors, report="<p>", files={"note.txt": file.read_bytes()}
        )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_run_killed_before_any_change_gives_the_same_and_leaves_nothing(tmp_path: Path) -> None:
    compute(tmp_path / "once")  # what is imported once need not be in every child
    assert killed_everywhere(compute, tmp_path, every=2) > 15


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_run_that_replaces_an_older_one_does_as_well(tmp_path: Path) -> None:
    def twice(out: Path) -> None:
        write_run(out, "sum", Sum(total=-1), files={"old.txt": b"old"})
        compute(out)

    twice(tmp_path / "once")
    assert killed_everywhere(twice, tmp_path, every=3) > 15
