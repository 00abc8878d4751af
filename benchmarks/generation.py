"""Steered against unsteered generation, and unsteered against `hf.generate`.

python -m benchmarks.generation [--model NAME] [--n 64]
"""

import argparse
import logging

import torch

from benchmarks.machine import interleaved_medians, write_section
from interp.data.prompts import load_prompts
from interp.engine.batching import pad_left
from interp.engine.generation import generate
from interp.engine.interventions import Ablate, Add
from interp.models.chat_model import ChatModel, load
from interp.models.tokens import ChatTokens, tokenize

NEW_TOKENS = 24


@torch.no_grad()
def hf_generate(model: ChatModel, tokens: ChatTokens) -> None:
    """`hf.generate` on the same batch, left-padded."""
    batch = pad_left(tokens.ids, pad_id=int(model.tokenizer.pad_token_id))  # type: ignore[arg-type]
    model.hf.generate(  # type: ignore[operator]
        input_ids=batch.ids, attention_mask=batch.mask, max_new_tokens=NEW_TOKENS, do_sample=False
    )


def main() -> None:
    """Run and write the section."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--n", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(2)
    model, prompts = load(args.model), load_prompts("builtin")
    tokens = tokenize(model.tokenizer, prompts["harmless", "test"].first(args.n).texts)
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    middle = model.n_layers // 2
    arms = {
        "hf.generate": lambda: hf_generate(model, tokens),
        "interp, unsteered": lambda: generate(model, tokens, max_new_tokens=NEW_TOKENS),
        "interp, plain path": lambda: generate(model, tokens, max_new_tokens=NEW_TOKENS, fast=False),
        "interp, addition at one layer": lambda: generate(
            model,
            tokens,
            max_new_tokens=NEW_TOKENS,
            interventions=[Add(direction=vector * 1e-3, layers=[middle])],
        ),
        "interp, addition at one layer, by role": lambda: generate(
            model,
            tokens,
            max_new_tokens=NEW_TOKENS,
            interventions=[Add(direction=vector * 1e-3, layers=[middle], positions="instruction")],
        ),
        # A direction of almost no weight in the stream, so that the completions stay those of the plain model.
        "interp, ablation at every site": lambda: generate(
            model, tokens, max_new_tokens=NEW_TOKENS, interventions=[Ablate(direction=vector)]
        ),
    }
    seconds = interleaved_medians(arms)
    base = seconds["interp, unsteered"]
    rows = "\n".join(f"| {name} | {s:.2f} | {s / base:.2f}x |" for name, s in seconds.items())
    text = f"""{len(tokens)} harmless prompts of `builtin`, {model.name}, float32, {NEW_TOKENS} greedy tokens.

| | seconds (median of 3) | against unsteered |
|---|---|---|
{rows}"""
    write_section("Generation", text)


if __name__ == "__main__":
    main()
