"""Plain and steered generation against `hf.generate`, of many prompts and of one: processor seconds of one thread.

    python -m benchmarks.generation [--model NAME] [--n 64] [--rounds 2]

All arms run in turn in one process, and the least processor time of each counts, so that other processes on the machine
disturb as little as can be.
"""

import argparse
import logging

import torch

from benchmarks.machine import least_processor_seconds, write_section
from benchmarks.plain_calls import plain_generate, plain_steered
from interp.data.prompts import load_prompts
from interp.engine.generation import generate
from interp.engine.interventions import Ablate, Add
from interp.models.adapted_models import with_precision
from interp.models.chat_model import load
from interp.models.tokens import tokenize

NEW_TOKENS = 24


def main() -> None:
    """Run and write the section."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    exact, prompts = load(args.model, dtype="float32"), load_prompts("builtin")
    models = {"exact": exact, "fast": with_precision(exact, "fast")}
    tokens = tokenize(exact.tokenizer, prompts["harmless", "test"].first(args.n).texts)
    one = tokens.take([0])
    vector = torch.randn(exact.d_model, generator=torch.Generator().manual_seed(0)) * 1e-3
    middle = exact.n_layers // 2
    # Directions of almost no weight in the stream, so that the completions stay those of the plain model.
    steering = {
        "plain": [],
        "addition at one layer": [Add(direction=vector, layers=[middle])],
        "addition, by role": [Add(direction=vector, layers=[middle], positions="instruction")],
        "ablation at every site": [Ablate(direction=vector)],
    }
    many = {
        "hf.generate": lambda: plain_generate(exact, tokens, NEW_TOKENS),
        "hf.generate, a hook that adds": lambda: plain_steered(exact, tokens, NEW_TOKENS, vector, middle),
        **{
            f"{name}, {how}": lambda m=model, i=interventions: generate(
                m, tokens, interventions=i, max_new_tokens=NEW_TOKENS
            )
            for name, model in models.items()
            for how, interventions in steering.items()
        },
    }
    single = {
        "hf.generate": lambda: plain_generate(exact, one, NEW_TOKENS),
        **{n: lambda m=m: generate(m, one, max_new_tokens=NEW_TOKENS) for n, m in models.items()},
    }
    rows = []
    for n, arms in ((len(tokens), many), (1, single)):
        seconds = least_processor_seconds(arms, args.rounds)
        base = seconds["hf.generate"]
        rows += [f"| {n} | {name} | {s:.2f} | {base / s:.2f}x |" for name, s in seconds.items()]
    # End of turn, and what follows it in a batch of `hf.generate`, is left out.
    plain = plain_generate(exact, tokens, NEW_TOKENS)
    alike = {
        name: sum(
            tuple(theirs[: len(ours)]) == ours
            for theirs, ours in zip(
                plain, generate(model, tokens, max_new_tokens=NEW_TOKENS).ids, strict=True
            )
        )
        for name, model in models.items()
    }
    table = "\n".join(rows)
    text = f"""Harmless prompts of `builtin`, {exact.name}, float32, {NEW_TOKENS} greedy tokens, one thread.

| prompts | | processor seconds, least of {args.rounds} | faster than hf.generate by |
|---|---|---|---|
{table}

Completions equal to those of `hf.generate`, of {len(tokens)}: {", ".join(f"{n} {a}" for n, a in alike.items())}."""
    write_section("Generation", text)


if __name__ == "__main__":
    main()
