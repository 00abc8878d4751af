"""Completions through the activation store: what storing costs, and how fast reading is, in processor seconds.

python -m benchmarks.stored_completions
"""

import argparse
import itertools
import shutil
import tempfile
from pathlib import Path

import torch

from benchmarks.machine import least_processor_seconds, write_section
from interp.data.prompts import load_prompts
from interp.engine.generation import Completions, generate
from interp.engine.stored_activations import using_store
from interp.models.chat_model import load


def main() -> None:
    """Run and write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=48, help="prompts, half of each kind")
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2, help="of which the least counts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    prompts, model = load_prompts("builtin"), load("smollm2-safe")
    texts = [
        text for kind in ("harmful", "harmless") for text in prompts[kind, "test"].first(args.n // 2).texts
    ]
    folder, numbers, seen = Path(tempfile.mkdtemp(prefix="interp-store-")), itertools.count(), set()

    def run(store: Path | None) -> Completions:
        with using_store(store):
            done = generate(model, texts, max_new_tokens=args.max_new_tokens)
        seen.add(done.ids)
        return done

    try:
        least = least_processor_seconds(
            {
                "generating": lambda: run(None),
                "cold": lambda: run(folder / str(next(numbers))),
                "warm": lambda: run(folder / "0"),
            },
            args.rounds,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    computed, cold, warm = least["generating"], least["cold"], least["warm"]
    write_section(
        "Stored completions",
        "\n".join(
            [
                "| generating | into a cold store | reading | generating : reading | completions |",
                "|---|---|---|---|---|",
                f"| {computed:.1f} | {cold / computed:.2f}x | {warm:.2f} | {computed / warm:.0f}x | "
                f"{'equal' if len(seen) == 1 else 'differ'} |",
                "",
                f"Processor seconds of {len(texts)} prompts x {args.max_new_tokens} tokens, smollm2-safe, float32, one "
                f"thread, the least of {args.rounds};",
                "most of reading is the hash of the weights.",
            ]
        ),
    )


if __name__ == "__main__":
    main()
