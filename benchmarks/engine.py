"""Collecting mean activations: the engine against a plain Hugging Face loop and against TransformerLens.

    python -m benchmarks.engine [--prompts SET] [--model NAME] [--n 128]

Task: mean resid_pre of every layer at every template token over n harmful and n harmless training prompts, float32.
"""

import argparse
import logging

import torch
from torch import Tensor

from benchmarks.machine import interleaved_medians, matmuls, resident_megabytes, write_section
from interp.data.prompts import load_prompts
from interp.engine.activations import collect_means
from interp.engine.batching import pad_left
from interp.models.chat_model import ChatModel, Edit, load
from interp.models.tokens import ChatTokens, tokenize


@torch.no_grad()
def plain_loop(model: ChatModel, tokens: ChatTokens, n_post: int) -> Tensor:
    """`model(**batch, output_hidden_states=True)` at batch 32, left-padded, as one would write it."""
    total = torch.zeros(model.n_layers, n_post, model.d_model, dtype=torch.float64)
    for start in range(0, len(tokens), 32):
        batch = pad_left(tokens.ids[start : start + 32], pad_id=0)
        hidden = model.hf(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.position_ids,
            output_hidden_states=True,
        ).hidden_states
        total += torch.stack([h[:, -n_post:].double().sum(0) for h in hidden[: model.n_layers]])
    return total / len(tokens)


@torch.no_grad()
def bridge_loop(model: ChatModel, tokens: ChatTokens, n_post: int) -> Tensor:
    """`bridge.run_with_cache` of all resid_pre at batch 32, left-padded."""
    names = {model.site("resid_pre", layer) for layer in range(model.n_layers)}
    total = torch.zeros(model.n_layers, n_post, model.d_model, dtype=torch.float64)
    for start in range(0, len(tokens), 32):
        batch = pad_left(tokens.ids[start : start + 32], pad_id=0)
        _, cache = model.bridge.run_with_cache(
            batch.ids, attention_mask=batch.mask, names_filter=lambda name: name in names
        )
        rows = [cache[model.site("resid_pre", layer)][:, -n_post:] for layer in range(model.n_layers)]
        total += torch.stack([r.double().sum(0) for r in rows])
    return total / len(tokens)


def main() -> None:
    """Run and write the section."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", default="builtin")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--n", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(2)
    model, prompts = load(args.model), load_prompts(args.prompts)
    texts = [t for kind in ("harmful", "harmless") for t in prompts[kind, "train"].first(args.n).texts]
    tokens = tokenize(model.tokenizer, texts)
    n_post = tokens.n_post
    wide = model.hf.config.intermediate_size
    products, flops = matmuls(512, model.d_model, wide)
    seconds = interleaved_medians(
        {
            "plain Hugging Face loop": lambda: plain_loop(model, tokens, n_post),
            "bridge.run_with_cache": lambda: bridge_loop(model, tokens, n_post),
            "interp.collect_means": lambda: collect_means(model, tokens, positions="post_inst"),
            **products,  # in turn with the engine, since a shared machine's speed drifts
        }
    )
    rates = {library: flops / seconds.pop(library) for library in products}
    fastest = max(rates, key=rates.__getitem__)
    peak = rates[fastest]
    ours = seconds["interp.collect_means"]
    reference = plain_loop(model, tokens, n_post)
    found = collect_means(model, tokens, positions="post_inst")["resid_pre"]
    error = ((found - reference).norm() / reference.norm()).item()

    # Share of the matrix-multiply peak, on the tokens that each block really runs.
    runs = [0] * model.n_layers

    def count(layer: int) -> Edit:
        def add(value: Tensor) -> None:
            runs[layer] += value.shape[0] * value.shape[1]

        return add

    with model.hooks([("mlp_out", layer, count(layer)) for layer in range(model.n_layers)]):
        collect_means(model, tokens, positions="post_inst")
    block = sum(p.numel() for p in model.blocks[0].module.parameters() if p.ndim == 2)
    achieved = 2 * sum(runs) * block / ours

    memory = []
    base = resident_megabytes()
    for n in (256, 1024, 4096):
        many = (texts * (n // len(texts) + 1))[:n]
        collect_means(model, many, positions="post_inst")
        memory.append(f"{n}: {resident_megabytes() - base:.0f} MB")
    rows = "\n".join(f"| {label} | {s:.2f} | {s / ours:.2f}x |" for label, s in seconds.items())
    name = prompts.name.rsplit("/", 1)[-1]
    text = f"""{len(tokens)} prompts of `{name}`, {model.name}, float32, {model.n_layers} layers, {n_post} roles.
{sum(map(len, tokens.ids))} prompt tokens, {runs[0]} run by the engine, which runs what prompts begin with once.

| | seconds (median of 3) | against the engine |
|---|---|---|
{rows}

Relative error of the means against the plain loop: {error:.1e}. Share of the float32 matrix-multiply peak
({peak / 1e9:.0f} GFLOP/s by {fastest} on a 512 x {model.d_model} x {wide} product): {achieved / peak:.0%}.
Resident memory above the loaded model and its bridge, by number of prompts: {", ".join(memory)}."""
    write_section("Engine", text)


if __name__ == "__main__":
    main()
