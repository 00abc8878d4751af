"""Collecting in bfloat16 and with `precision="fast"`: processor seconds against plain Hugging Face loops, and its cost.

    python -m benchmarks.precision [--model NAME] [--n 64] [--rounds 3]

All arms run in turn in one process on one thread, and the least processor time of each counts, so that other processes
on the machine disturb as little as can be.
"""

import argparse
import logging

import torch
from torch import Tensor

from benchmarks.engine import plain_loop
from benchmarks.machine import least_processor_seconds, write_section
from interp.data.prompts import load_prompts
from interp.engine.activations import collect_means
from interp.models.adapted_models import with_precision
from interp.models.chat_model import load
from interp.models.precision import bfloat16_speedup
from interp.models.tokens import tokenize


def main() -> None:
    """Run and write the section."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    prompts = load_prompts("builtin")
    texts = {kind: prompts[kind, "train"].first(args.n).texts for kind in ("harmful", "harmless")}
    exact, half = load(args.model, dtype="float32"), load(args.model, dtype="bfloat16")
    fast = with_precision(exact, "fast")
    tokens = tokenize(exact.tokenizer, [text for each in texts.values() for text in each])
    models = {"float32, exact": exact, "float32, fast": fast, "bfloat16": half}

    def means(name: str, kind: str) -> Tensor:
        return collect_means(models[name], texts[kind], positions=["t_inst", "t_post_inst"])["resid_pre"]

    directions = {name: means(name, "harmful") - means(name, "harmless") for name in models}
    cosines = {
        name: torch.cosine_similarity(directions[name], directions["float32, exact"], dim=-1)[1:]
        for name in ("float32, fast", "bfloat16")
    }
    loops = {"float32": exact, "bfloat16": half}
    seconds = least_processor_seconds(
        {
            **{
                f"plain loop, {d}": lambda m=m: plain_loop(m, tokens, tokens.n_post) for d, m in loops.items()
            },
            **{n: lambda m=m: collect_means(m, tokens, positions="post_inst") for n, m in models.items()},
        },
        args.rounds,
    )
    faster = {
        name: seconds[f"plain loop, {str(model.dtype).removeprefix('torch.')}"] / seconds[name]
        for name, model in models.items()
    }
    rows = "\n".join(f"| {name} | {seconds[name]:.2f} | {ratio:.2f}x |" for name, ratio in faster.items())
    plain = ", ".join(f"{s:.2f} s ({name})" for name, s in seconds.items() if name.startswith("plain"))
    lowest = "; ".join(
        f"{name}: {c[:, 0].min():.5f} at t_inst, {c[:, 1].min():.5f} at t_post_inst"
        for name, c in cosines.items()
    )
    cost = fast.precision_cost or {}
    text = f"""{len(tokens)} prompts of `builtin`, {exact.name}, {exact.n_layers} layers, one thread:
means of resid_pre.

| interp | processor seconds, least of {args.rounds} | faster than a plain loop in that dtype by |
|---|---|---|
{rows}

Plain loops: {plain}. A product in bfloat16 is {bfloat16_speedup(1):.1f} times as fast as in float32 here.
Lowest cosine of a layer's difference in means with that of float32, exact (layers from 1): {lowest}.
Relative error of states in `fast`: {cost.get("states_error", float("nan")):.1e} at most, over layers."""
    write_section("Reduced precision", text)


if __name__ == "__main__":
    main()
