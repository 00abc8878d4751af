"""Tracking checkpoints in one process, with one worker and with two, each of one thread.

python -m benchmarks.scale_out [--checkpoints 12] [--prompts 32]

Wall time counts where nothing else runs; processor time, of all processes, is comparable on a busy machine too.
What a worker costs once (starting Ray, importing the library) is measured apart, with a series of one checkpoint.
"""

import argparse
import logging
import resource
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from benchmarks.machine import write_section
from interp.engine.ray_cluster import Workers
from interp.models.sources import ADAPTER_FOLDER
from interp.tracking.spec import TrackingSpec
from interp.tracking.tracker import track


class Cost(NamedTuple):
    """What a run took."""

    wall: float
    """Seconds by the clock."""
    processor: float
    """Seconds of processor time, of this process and those that it started and waited for."""


def series(folder: Path, count: int) -> list[Path]:
    """Adapters of different strength: the shipped one, scaled."""
    weights = load_file(ADAPTER_FOLDER / "adapter_model.safetensors")
    folders = []
    for number in range(count):
        place = folder / f"checkpoint-{number}"
        shutil.copytree(ADAPTER_FOLDER, place)
        scaled = {k: v * (number + 1) / count if "lora_B" in k else v for k, v in weights.items()}
        save_file({k: v.contiguous() for k, v in scaled.items()}, place / "adapter_model.safetensors")
        folders.append(place)
    return folders


def processor_seconds() -> float:
    """Processor time of this process and of the children that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def cost(folders: list[Path], spec: TrackingSpec, workers: Workers | None) -> tuple[Cost, list[Any]]:
    """What tracking these takes, and what it found."""
    wall, processor = time.perf_counter(), processor_seconds()
    found = track([str(folder) for folder in folders], spec, base="smollm2", workers=workers)
    spent = Cost(time.perf_counter() - wall, processor_seconds() - processor)
    return spent, [replace(checkpoint, seconds=0.0) for checkpoint in found.record.checkpoints]


def main() -> None:
    """Run and write the section."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(1)
    spec = TrackingSpec(
        n=given.prompts, n_fit=given.prompts, measures=("refusal", "beliefs", "directions", "shift", "guard")
    )
    ways = {
        "this process": None,
        "one worker": Workers(count=1),
        "two workers": Workers(count=2),
    }
    with tempfile.TemporaryDirectory() as place:
        folders = series(Path(place), given.checkpoints)
        cost(folders[:1], spec, None)  # imports and conversion are paid before anything is timed
        costs: dict[str, Cost] = {}
        found: dict[str, list[Any]] = {}
        for name, workers in ways.items():
            # Threads of two workers are halves of this process's.
            torch.set_num_threads(2 if workers == Workers(count=2) else 1)
            costs[name], found[name] = cost(folders, spec, workers)
        torch.set_num_threads(1)
        started, _ = cost(folders[:1], spec, Workers(count=1))
        alone, _ = cost(folders[:1], spec, None)
    same = all(rows == found["this process"] for rows in found.values())
    base = costs["this process"].wall
    rows = "\n".join(
        f"| {name} | {each.wall:.0f} | {each.wall / base:.2f} | {each.processor:.0f} |"
        for name, each in costs.items()
    )
    write_section(
        "Several workers",
        f"""{given.checkpoints} adapter checkpoints of smollm2, {given.prompts} prompts of each kind, one thread each;
the records are {"equal to the bit" if same else "NOT EQUAL"}.

| | seconds | of this process | processor seconds |
|---|---|---|---|
{rows}

Starting Ray and one worker takes {started.wall - alone.wall:.0f} s once, and
{started.processor - alone.processor:.0f} s of processor time.""",
    )


if __name__ == "__main__":
    main()
