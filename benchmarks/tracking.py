"""Tracking twelve adapter checkpoints with the default spec, and what a live callback costs a fine-tune.

python -m benchmarks.tracking [--checkpoints 12]
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.machine import resident_megabytes, write_section
from interp.data.examples import Example
from interp.data.prompts import load_prompts
from interp.data.replies import AFFIRMATION
from interp.models.chat_model import load
from interp.tracking.tracker import ElasticityCallback, track
from interp.training.finetune import TrainConfig, fine_tune

BATCH = 8


def main() -> None:
    """Run and write the section."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=12)
    count = parser.parse_args().checkpoints
    torch.set_num_threads(2)
    model = load("smollm2-safe")
    counts = [BATCH * i for i in range(count)]
    texts = load_prompts("builtin")["harmful", "train"].first(max(counts[-1], BATCH)).texts
    with tempfile.TemporaryDirectory() as place:
        callback = ElasticityCallback(every=max(1, (count - 1) // 2), out=Path(place) / "live")
        trained = fine_tune(
            model,
            [Example(text, AFFIRMATION) for text in texts],
            out=Path(place) / "stubs",
            config=TrainConfig(epochs=1.0, batch_size=BATCH, schedule="constant", warmup_steps=0),
            checkpoints=counts,
            callbacks=[callback],
        )
        assert callback.trajectory is not None and callback.trajectory.cost is not None
        cost = callback.trajectory.cost
        memory = [resident_megabytes()]
        begun = time.perf_counter()
        for n in (count // 2, count):  # the second goes on where the first ended
            series = [str(folder) for folder in trained.checkpoints.values()][:n]
            found = track(series, base=model, out=Path(place) / "track")
            memory.append(resident_megabytes())
        seconds = time.perf_counter() - begun
        each = [checkpoint.seconds for checkpoint in found.checkpoints]
    live, step = cost.seconds_per_measurement, cost.seconds_per_step
    write_section(
        "Tracking",
        f"""{count} adapter checkpoints of {model.name}, default spec, float32: {seconds:.0f} s in all;
{min(each):.0f} to {max(each):.0f} s a checkpoint. Resident memory before, after {count // 2} and after {count}:
{", ".join(f"{m:.0f}" for m in memory)} MB.

`ElasticityCallback` with its own smaller spec: {live:.1f} s a measurement, as long as {live / step:.1f} steps of
{step:.2f} s ({BATCH} examples, LoRA). Measured every 50 steps that is {live / (live + 50 * step):.0%} of the time.""",
    )


if __name__ == "__main__":
    main()
