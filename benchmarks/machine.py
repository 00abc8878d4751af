"""What the benchmarks share: medians, the machine's line, its matrix-multiply peak, results.md."""

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results.md"


def interleaved_medians(runs: dict[str, Callable[[], object]], *, repeats: int = 3) -> dict[str, float]:
    """Median wall time of each run, taken in turn so that a drift of the machine's speed hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(repeats + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if round_:  # the first round warms up
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def least_processor_seconds(
    runs: dict[str, Callable[[], object]], rounds: int, *, warm_up: bool = True
) -> dict[str, float]:
    """Least processor time of each run, taken in turn; with `warm_up`, a further round before them is not counted."""
    least = dict.fromkeys(runs, float("inf"))
    for round_ in range(-warm_up, rounds):
        for name, run in runs.items():
            begun = time.process_time()
            run()
            if round_ >= 0:
                least[name] = min(least[name], time.process_time() - begun)
    return least


def matmuls(
    rows: int, d_in: int, d_out: int, *, repeats: int = 300
) -> tuple[dict[str, Callable[[], object]], int]:
    """Float32 products of this shape by each library of torch, and the multiply-adds, times two, of a run."""
    x, weight = torch.randn(rows, d_in), torch.randn(d_out, d_in)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def plain() -> None:
        for _ in range(repeats):
            torch.nn.functional.linear(x, weight)

    def by_onednn() -> None:
        for _ in range(repeats):
            torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")

    return {"nn.Linear": plain, "oneDNN, packed": by_onednn}, 2 * rows * d_in * d_out * repeats


def resident_megabytes() -> float:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmRSS in /proc/self/status")


def machine_line() -> str:
    """CPU, threads, versions and date."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    today = datetime.date.today().isoformat()
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, {today}"


def write_section(title: str, text: str) -> None:
    """Replace or append one section of results.md."""
    empty = (
        "# Benchmark results\n\nRatios within one process; written by `make bench` and `make bench-gpu`.\n"
    )
    old = RESULTS.read_text() if RESULTS.is_file() else empty
    head, *sections = old.split("\n## ")
    kept = [s for s in sections if not s.startswith(f"{title}\n")]
    kept.append(f"{title}\n\n{machine_line()}\n\n{text.strip()}\n")
    RESULTS.write_text("\n## ".join([head.rstrip() + "\n", *(s.rstrip() + "\n" for s in kept)]))
    print(f"## {title}\n\n{text}")
