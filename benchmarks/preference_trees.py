"""Preference trees against chains: the same number of answers of the same length to the same prompts.

    python -m benchmarks.preference_trees [--model NAME] [--print]

Trees and chains decode by the same code, which runs a prompt once for all its answers; segments end by length alone, so
that answers are equally long. The third way samples trees too, but runs every node's prefix again. CPU seconds are
those of the process.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.machine import write_section
from interp.data.preference_trees import PreferenceTree
from interp.data.prompts import load_prompts
from interp.engine.tree_decoding import TreeShape, sample_trees
from interp.models.chat_model import ChatModel, load
from interp.models.tokens import ChatTokens, tokenize
from interp.training.reward_models import with_replies
from interp.training.tree_generation import grow_trees, sample_chains

SEGMENT = 6
SHAPES = ((3, 2, 8), (4, 2, 16), (3, 4, 2))
"""Depth, branching and prompts. With few prompts the first levels decode in small batches, which cost more a token."""


def rerun_trees(model: ChatModel, tokens: ChatTokens, depth: int, branching: int) -> int:
    """Trees of the same shape, each level from a run of whole prefixes; the number of tokens sampled."""
    places, prefixes, count = list(range(len(tokens))), [()] * len(tokens), 0
    shape = TreeShape(depth=1, branching=branching, segment_tokens=SEGMENT)
    for level in range(depth):
        segments = sample_trees(model, with_replies(tokens.take(places), prefixes), shape, seed=level)
        count += sum(len(ids) for tree in segments for ids in tree.values())
        following = [
            (place, (*prefix, *ids))
            for place, prefix, tree in zip(places, prefixes, segments, strict=True)
            for ids in tree.values()
        ]
        places, prefixes = [place for place, _ in following], [prefix for _, prefix in following]
    return count


def generated(grow: Callable[[], list[PreferenceTree]]) -> int:
    """The number of tokens sampled."""
    return sum(tree.generated for tree in grow())


def cpu_medians(runs: dict[str, Callable[[], int]], repeats: int) -> tuple[dict[str, float], dict[str, int]]:
    """CPU seconds and the tokens sampled of each run, taken in turn."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    tokens: dict[str, int] = {}
    for _ in range(repeats):
        for name, run in runs.items():
            begun = time.process_time()
            tokens[name] = run()
            spent[name].append(time.process_time() - begun)
    return {name: statistics.median(times) for name, times in spent.items()}, tokens


def main() -> None:
    """Run and write the section."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--print", action="store_true", help="print, and leave results.md as it is")
    args = parser.parse_args()
    model, prompts = load(args.model), load_prompts("builtin")
    rows = []
    sample_chains(model, list(prompts["harmless", "test"].first(8).texts), n=8, max_new_tokens=4)  # warms up
    for depth, branching, n in SHAPES:
        tokens = tokenize(model.tokenizer, prompts["harmless", "test"].first(n))
        leaves = branching**depth
        grow = partial(
            grow_trees, model, tokens, depth=depth, branching=branching, segment_tokens=SEGMENT, separators=()
        )
        chains = partial(sample_chains, model, tokens, n=leaves, max_new_tokens=depth * SEGMENT)
        runs = {
            "chains": partial(generated, chains),
            "trees": partial(generated, grow),
        }
        if not rows:  # the smallest shape shows it
            runs["prefixes again"] = partial(rerun_trees, model, tokens, depth, branching)
        seconds, counts = cpu_medians(runs, args.repeats)
        again = f"{seconds['prefixes again']:.2f}" if "prefixes again" in seconds else ""
        rows.append(
            f"| {depth} x {branching} | {len(tokens)} | {leaves} | {counts['chains']} | {counts['trees']} | "
            f"{counts['trees'] / counts['chains']:.2f} | {seconds['chains']:.2f} | {seconds['trees']:.2f} | "
            f"{seconds['trees'] / seconds['chains']:.2f} | {again} |"
        )
    text = f"""Harmless prompts of `builtin`, {model.name}, float32, segments of at most {SEGMENT} tokens at
temperature 1; CPU seconds (median of {args.repeats}) of as many answers as trees and as chains.
Shapes are depth x branching, answers those of each prompt; the last column is of trees whose levels run every node's
prefix again.

| shape | prompts | answers | chains, tokens | trees, tokens | ratio | chains, s | trees, s | ratio | again, s |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}"""
    if args.print:
        print(text)
    else:
        write_section("Preference trees", text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
