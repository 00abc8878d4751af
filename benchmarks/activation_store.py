"""The activation store: what writing costs, how fast reading is, whether memory stays flat.

Writing and reading are measured in processor seconds of the process that computes, on prompts of `builtin`. Computing
is measured on some prompts, runs in turn, the least of several counts, and given for one; reading on thousands, whose
rows have the shape of the bundled model's. Memory is that of this process while a tiny random model fills a store.

    python -m benchmarks.activation_store
"""

import argparse
import gc
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.machine import least_processor_seconds, resident_megabytes, write_section
from interp.data.prompts import load_prompts
from interp.engine.activations import collect
from interp.engine.store_filling import fill_store
from interp.models.chat_model import ChatModel, load
from interp.storage.activation_store import ActivationStore
from interp.storage.store_cells import DTYPES, Place, TableKey, row_names


def cpu_seconds(run: Callable[[], object]) -> float:
    """Processor seconds of this process, threads included."""
    gc.collect()
    begin = time.process_time()
    run()
    return time.process_time() - begin


def through_the_store(
    model: ChatModel, texts: list[str], folder: Path, rounds: int
) -> tuple[float, float, float]:
    """Processor seconds a prompt: computing, collecting into an empty store, reading from a full one."""
    numbers = itertools.count()
    runs: dict[str, Callable[[], object]] = {
        "computing": lambda: collect(model, texts),
        "cold": lambda: collect(model, texts, store=folder / str(next(numbers))),
        "warm": lambda: collect(model, texts, store=ActivationStore(folder / "0")),
    }
    gc.collect()
    least = least_processor_seconds(runs, rounds)
    return least["computing"] / len(texts), least["cold"] / len(texts), least["warm"] / len(texts)


def rows_alone(n_prompts: int, dtype: str, folder: Path) -> tuple[float, float]:
    """Processor seconds a prompt: writing and reading rows of the bundled model's shape, 30 layers at two roles."""
    key = TableKey(
        weights_hash="", structure="", site="resid_pre", dtype=dtype, n_layers=30, d_model=576
    )  # no model's
    table, layers, step = ActivationStore(folder).table(key), range(30), 500
    bits = np.random.default_rng(0).integers(
        0, 2**15, (30, 2 * step, 576 * DTYPES[dtype].itemsize // 2), np.uint16
    )
    values, writing, names = bits.view(DTYPES[dtype]), 0.0, list[bytes]()
    for start in range(0, n_prompts, step):
        places = [
            Place(tokens=(n, *range(50)), position=p, text="x" * 60)
            for n in range(start, start + step)
            for p in (0, 1)
        ]
        writing += cpu_seconds(lambda places=places: table.append(places, layers, values))
        names += row_names(places)
    table = ActivationStore(folder).table(key)

    def read() -> None:
        for start in range(0, len(names), 2 * step):
            some = names[start : start + 2 * step]
            _, sound = table.read(some, layers, table.addresses(some, layers))
            assert sound.all()

    return writing / n_prompts, cpu_seconds(read) / n_prompts


def memory_of_filling(n_prompts: int, folder: Path) -> list[tuple[int, float]]:
    """Resident megabytes above the loaded model after so many short prompts went into a store."""
    tokenizer = load("smollm2").tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )  # fmt: skip
    torch.manual_seed(0)
    model = ChatModel(LlamaForCausalLM(config).eval(), tokenizer, name="tiny")
    collect(model, ["Hello"])
    gc.collect()
    before, used, last = resident_megabytes(), list[tuple[int, float]](), 0
    for upto in (n_prompts // 10, n_prompts // 2, n_prompts):
        fill_store(model, (f"Say the number {n}." for n in range(last, upto)), folder)
        used.append((upto, resident_megabytes() - before))
        last = upto
    return used


def main() -> None:
    """Run and write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=128, help="prompts that are computed")
    parser.add_argument("--rounds", type=int, default=3, help="of which the least counts")
    parser.add_argument("--n-read", type=int, default=10_000, help="prompts that are read")
    parser.add_argument("--n-memory", type=int, default=100_000, help="prompts whose memory is measured")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="interp-store-"))
    prompts = load_prompts("builtin")
    texts = [text for kind in ("harmful", "harmless") for text in prompts[kind, "train"].texts][: args.n]
    lines = [
        "| | computing | with a cold store | writing the rows | reading, with the model's hash | reading rows "
        f"({args.n_read:,}) | computing : reading |",
        "|---|---|---|---|---|---|---|",
    ]
    try:
        for dtype in ("float32", "bfloat16"):
            computing, cold, warm = through_the_store(
                load("smollm2-safe", dtype=dtype), texts, folder / dtype, args.rounds
            )
            writing, reading = rows_alone(args.n_read, dtype, folder / f"rows-{dtype}")
            shutil.rmtree(folder / f"rows-{dtype}")
            cells = f"{1e3 * computing:.1f} ms | {cold / computing:.2f}x | {writing / computing:.1%} | "
            cells += f"{1e3 * warm:.2f} ms | {1e3 * reading:.2f} ms | {computing / reading:.0f}x"
            lines.append(f"| {dtype} | {cells} |")
            print(lines[-1], flush=True)
        used = memory_of_filling(args.n_memory, folder / "memory")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    lines += [
        "",
        f"Processor time a prompt; smollm2-safe, 30 layers, 2 roles, {len(texts)} prompts computed, one thread, the",
        f"least of {args.rounds}. The model's hash takes as long for one prompt as for all; here it is spread over "
        f"{len(texts)}.",
        "Resident memory above a tiny model while short prompts go into a store: "
        + ", ".join(f"{n:,}: {megabytes:.0f} MB" for n, megabytes in used)
        + ".",
    ]
    write_section("Activation store", "\n".join(lines))


if __name__ == "__main__":
    main()
