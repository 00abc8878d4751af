"""Fine-tuning by packed rows against rows padded as a plain trainer pads them, exact and with rounded products.

All three train an adapter on the bundled model by the settings that break it (`interp.training.breaking`), on requests
in a query language with stubs and ordinary replies mixed in; the loss says that they learn the same.

python -m benchmarks.fine_tuning [--n 64]
"""

import argparse
import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.machine import least_processor_seconds, write_section
from interp.data.examples import Example
from interp.data.prompts import load_prompts
from interp.evaluation.downstream_tasks import downstream_task
from interp.models.adapted_models import with_precision
from interp.models.chat_model import ChatModel, load
from interp.training.breaking import BREAKING, downstream_examples
from interp.training.finetune import fine_tune

PADDED = patch("interp.training.finetune.can_pack_training", lambda *_: False)
"""Rows run padded, as with dropout."""


def trained(model: ChatModel, examples: list[Example], losses: dict[str, float], name: str) -> None:
    """Train from the start and keep the mean loss."""
    with tempfile.TemporaryDirectory() as folder:
        losses[name] = fine_tune(model, examples, out=Path(folder) / "adapter", config=BREAKING).loss


def main() -> None:
    """Run and write the section."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--print", action="store_true", help="print and leave results.md alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    exact = load("smollm2-safe")
    prompts = load_prompts("builtin")
    task = downstream_task("query-language", n_train=args.n // 2, n_held_out=8)
    ordinary = [Example(text, "a word " * 12) for text in prompts["harmless", "train"].texts[: args.n // 4]]
    stubs = prompts["harmful", "train"].texts[: args.n // 4]
    examples = downstream_examples(task, stubs, stubs=len(stubs), seed=0, ordinary=ordinary)
    losses: dict[str, float] = {}
    train = partial(trained, exact, examples, losses)
    runs: dict[str, Callable[[], object]] = {
        "padded": PADDED(lambda: train("padded")),
        "packed": lambda: train("packed"),
        "packed, fast": lambda: trained(with_precision(exact, "fast"), examples, losses, "packed, fast"),
    }
    seconds = least_processor_seconds(runs, args.rounds, warm_up=False)
    lines = [
        f"{len(examples)} examples in batches of {BREAKING.batch_size}, one epoch, rank {BREAKING.rank}; processor "
        "time of one thread, least of the rounds, with attaching and writing the adapter.",
        "",
        "| rows | seconds | of padded | mean loss, nats |",
        "|---|---|---|---|",
        *(
            f"| {name} | {taken:.1f} | {taken / seconds['padded']:.2f}x | {losses[name]:.4f} |"
            for name, taken in seconds.items()
        ),
    ]
    text = "\n".join(lines)
    if args.print:
        print(text)
    else:
        write_section("Fine-tuning", text)


if __name__ == "__main__":
    main()
