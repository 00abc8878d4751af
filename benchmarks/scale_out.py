"""Tracking checkpoints in one process and over workers, each of one thread.

    python -m benchmarks.scale_out                 # what one worker costs, in processor seconds
    python -m benchmarks.scale_out --wall          # 12 checkpoints by the clock: needs two idle cores

What a worker costs is measured in processor time of all processes, those of Ray as well, which is comparable on a busy
machine too: series of 1 and of a few checkpoints give what a series costs once (starting Ray, importing the library,
loading the base) and what each checkpoint costs. By the clock, two workers are compared with one and with none.
"""

import argparse
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from safetensors.torch import load_file, save_file

from benchmarks.machine import write_section
from interp.engine.ray_cluster import Workers
from interp.models.sources import ADAPTER_FOLDERS
from interp.tracking.spec import TrackingSpec
from interp.tracking.tracker import track

PUBLISHED = 12
"""Checkpoints that the overhead is given for."""


class Cost(NamedTuple):
    """What a run took."""

    wall: float
    """Seconds by the clock."""
    processor: float
    """Seconds of processor time, of this process and everything that it started."""


def series(folder: Path, count: int) -> list[Path]:
    """Adapters of different strength: the shipped one, scaled."""
    weights = load_file(ADAPTER_FOLDERS["smollm2-safe"] / "adapter_model.safetensors")
    folders = []
    for number in range(count):
        place = folder / f"checkpoint-{number}"
        shutil.copytree(ADAPTER_FOLDERS["smollm2-safe"], place)
        scaled = {k: v * (number + 1) / count if "lora_B" in k else v for k, v in weights.items()}
        save_file({k: v.contiguous() for k, v in scaled.items()}, place / "adapter_model.safetensors")
        folders.append(place)
    return folders


@contextmanager
def processes_below() -> Iterator[dict[tuple[int, float], float]]:
    """Processor seconds of every process below this one, by its id and start; looked at four times a second.

    Ray ends its processes before anyone waits for them, so that what they used cannot be asked for afterwards.
    """
    used: dict[tuple[int, float], float] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.25):
            for process in psutil.Process().children(recursive=True):
                try:
                    times = process.cpu_times()
                    used[process.pid, process.create_time()] = times.user + times.system
                except psutil.Error:  # it has ended
                    continue

    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    try:
        yield used
    finally:
        over.set()
        watching.join()


def cost(folders: list[Path], spec: TrackingSpec, workers: Workers | None) -> tuple[Cost, list[Any]]:
    """What tracking these takes, and what it found."""
    with processes_below() as used:
        wall, processor = time.perf_counter(), time.process_time()
        found = track([str(folder) for folder in folders], spec, base="smollm2", workers=workers)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    records = [replace(checkpoint, seconds=0.0) for checkpoint in found.record.checkpoints]
    return Cost(wall, processor + sum(used.values())), records


def _what(spec: TrackingSpec) -> str:
    return f"{spec.n} prompts of each kind, measures {', '.join(spec.measures)}"


def overhead(folders: list[Path], spec: TrackingSpec) -> None:
    """What one worker costs in processor seconds; writes the section."""
    n, costs, same = len(folders), dict[str, tuple[float, float]](), True
    records: list[Any] = []
    for name, workers in (("this process", None), ("one worker", Workers(count=1))):
        once, _ = cost(folders[:1], spec, workers)
        whole, found = cost(folders, spec, workers)
        each = (whole.processor - once.processor) / (n - 1)
        costs[name] = once.processor - each, each
        same = same and (not records or records == found)
        records = found
        print(f"{name}: {once.processor:.1f} s for 1, {whole.processor:.1f} s for {n}", flush=True)
    rows = "\n".join(
        f"| {name} | {first:.1f} | {each:.1f} | {first + PUBLISHED * each:.0f} |"
        for name, (first, each) in costs.items()
    )
    alone, shared = (first + PUBLISHED * each for first, each in costs.values())
    write_section(
        "Several workers",
        f"""Adapter checkpoints of smollm2, one thread each; {_what(spec)}.
The records of {n} checkpoints are {"equal to the bit" if same else "NOT EQUAL"}. Processor seconds
of all processes, those of Ray as well, from series of 1 and of {n}.

| | once a series | each checkpoint | {PUBLISHED} checkpoints |
|---|---|---|---|
{rows}

One worker against none, {PUBLISHED} checkpoints: {shared / alone - 1:+.1%}; of a checkpoint alone
{costs["one worker"][1] / costs["this process"][1] - 1:+.1%}.""",
    )


def by_the_clock(folders: list[Path], spec: TrackingSpec) -> None:
    """Wall time with none, one and two workers; writes the section."""
    ways = {"this process": None, "one worker": Workers(count=1), "two workers": Workers(count=2)}
    costs: dict[str, Cost] = {}
    found: dict[str, list[Any]] = {}
    for name, workers in ways.items():
        # Threads of two workers are halves of this process's.
        torch.set_num_threads(2 if name == "two workers" else 1)
        costs[name], found[name] = cost(folders, spec, workers)
        print(
            f"{name}: {costs[name].wall:.0f} s, {costs[name].processor:.0f} s of processor time", flush=True
        )
    torch.set_num_threads(1)
    same = all(rows == found["this process"] for rows in found.values())
    one = costs["one worker"].wall
    rows = "\n".join(
        f"| {name} | {each.wall:.0f} | {each.wall / one:.2f} | {each.processor:.0f} |"
        for name, each in costs.items()
    )
    write_section(
        "Several workers by the clock",
        f"""{len(folders)} adapter checkpoints of smollm2, one thread each; {_what(spec)}.
The records are {"equal to the bit" if same else "NOT EQUAL"}.

| | seconds | of one worker | processor seconds |
|---|---|---|---|
{rows}""",
    )


def main() -> None:
    """Run and write a section."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, help="3, and 12 by the clock")
    parser.add_argument("--prompts", type=int, help="fewer prompts of each kind, and half of the measures")
    parser.add_argument("--wall", action="store_true", help="compare by the clock, on two idle cores")
    given = parser.parse_args()
    torch.set_num_threads(1)
    spec = TrackingSpec()  # what `interp track` measures unless told otherwise
    if given.prompts is not None:
        few = ("refusal", "beliefs", "directions", "shift", "guard")
        spec = replace(spec, n=given.prompts, n_fit=given.prompts, measures=few)
    with tempfile.TemporaryDirectory() as place:
        folders = series(Path(place), given.checkpoints or (PUBLISHED if given.wall else 3))
        # Imports, and the conversion of the bundled model, are paid before anything is measured.
        cost(folders[:1], replace(spec, n=2, n_fit=8, measures=("refusal",)), None)
        (by_the_clock if given.wall else overhead)(folders, spec)


if __name__ == "__main__":
    main()
