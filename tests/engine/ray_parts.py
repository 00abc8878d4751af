"""Functions that the workers of `test_ray` run: they note on the disk what they did."""

import logging
import os
import signal
import tempfile
import time
from pathlib import Path

import torch

logger = logging.getLogger("interp.tests")


def prepared(folder: Path) -> Path:
    """The state of a worker: where to take notes; notes that it was made."""
    note(folder, f"prepared {os.getpid()}")
    return folder


def note(folder: Path, line: str) -> None:
    with (folder / "notes").open("a") as stream:
        stream.write(f"{line}\n")


def notes(folder: Path, kind: str) -> list[str]:
    """What was noted after this word, in order."""
    lines = (folder / "notes").read_text().splitlines()
    return [line.removeprefix(f"{kind} ") for line in lines if line.startswith(f"{kind} ")]


def product(folder: Path, seed: int) -> torch.Tensor:
    """A product of random matrices, half a second later."""
    note(folder, f"part {seed}")
    time.sleep(0.5)
    generator = torch.Generator().manual_seed(seed)
    logger.warning("these are random numbers")
    return torch.randn(64, 64, generator=generator) @ torch.randn(64, 64, generator=generator)


def killed_once(folder: Path, seed: int) -> torch.Tensor:
    """The product; part 2 kills its process at the first try."""
    if seed == 2 and not (folder / "killed").exists():
        (folder / "killed").touch()
        note(folder, f"part {seed}")
        os.kill(os.getpid(), signal.SIGKILL)
    return product(folder, seed)


def always_killed(_folder: Path, _seed: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def mistaken(folder: Path, seed: int) -> int:
    """The part; 3 is a mistake."""
    if seed == 3:
        raise ValueError("three is not allowed; give another number")
    note(folder, f"part {seed}")
    return seed


def environment(_folder: Path, _seed: int) -> tuple[int, int]:
    return torch.get_num_threads(), os.getpid()


def leave_a_folder(folder: Path, part: int) -> Path:  # noqa: ARG001
    """A temporary folder that nobody removes."""
    return Path(tempfile.mkdtemp(prefix="interp-"))
