"""Alignment recovery against the plain implementation: autograd over whole padded prompts, no stop at the cut.

The pair is the bundled model before (`smollm2`) and after (`smollm2-safe`) its safety training.

python -m benchmarks.recovery [--n 64] [--steps 3]
"""

import argparse
import logging
import math
import time
from itertools import cycle, islice

import torch
from torch import Tensor

from benchmarks.machine import resident_megabytes, write_section
from interp.data.prompts import load_prompts
from interp.engine.batching import pad_left
from interp.models.chat_model import ChatModel, load
from interp.models.tokens import ChatTokens, tokenize
from interp.training.recovery import RecoveryConfig, recover
from interp.training.weight_restoration import n_block_parameters, restorable_weights


def plain_states(model: ChatModel, tokens: ChatTokens, cut: int) -> Tensor:
    """Residual stream before block `cut` at the last token of whole padded prompts."""
    padded = pad_left(tokens.ids, pad_id=0)
    hidden = model.hf(
        padded.ids, attention_mask=padded.mask, position_ids=padded.position_ids, output_hidden_states=True
    ).hidden_states
    return hidden[cut][:, -1]


def plain_recovery(
    finetuned: ChatModel, aligned: ChatModel, texts: list[str], config: RecoveryConfig
) -> list[int]:
    """Steps without rollback, as the paper describes them; the number of weights restored by each."""
    tokens, cut = tokenize(finetuned.tokenizer, texts), config.cut_layer(finetuned.n_layers)
    size = config.batch_size
    groups = [tokens.take(list(range(i, min(i + size, len(tokens))))) for i in range(0, len(tokens), size)]
    with torch.no_grad():
        direction = torch.cat([plain_states(aligned, group, cut) for group in groups]).mean(0)
    weights = restorable_weights(finetuned, cut)
    reference = {name: value.detach() for name, value in aligned.hf.named_parameters() if name in weights}
    k, counts = math.ceil(config.rate * n_block_parameters(finetuned)), []
    for _ in range(config.steps):
        for group in groups:
            mean = plain_states(finetuned, group, cut).mean(0)
            (-torch.cosine_similarity(mean, direction, dim=0)).backward()
        with torch.no_grad():
            ranks = {
                name: torch.where((weight - reference[name]) * weight.grad > 0, weight.grad.abs(), -1.0)
                for name, weight in weights.items()
            }
            limit = torch.cat([rank.flatten() for rank in ranks.values()]).topk(k).values[-1]
            for name, weight in weights.items():
                weight[ranks[name] > limit] = reference[name][ranks[name] > limit]
            counts.append(sum(int((rank > limit).sum()) for rank in ranks.values()))
    return counts


def main() -> None:
    """Run and write the section."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--print", action="store_true", help="print and leave results.md alone")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    finetuned, aligned = load("smollm2"), load("smollm2-safe")
    prompts = load_prompts("builtin", ending="period")
    harmful, task = (
        list(islice(cycle(list(prompts[kind, "train"].texts)), args.n)) for kind in ("harmful", "harmless")
    )
    config = RecoveryConfig(steps=args.steps, save_every=args.steps)
    recover(finetuned, aligned, harmful[:16], task[:16], lambda _: 1.0, RecoveryConfig(steps=1))
    base, rows = resident_megabytes(), {}
    begun, cpu = time.perf_counter(), time.process_time()
    recovered = recover(finetuned, aligned, harmful, task, lambda _: 1.0, config)
    rows["recover"] = time.perf_counter() - begun, time.process_time() - cpu
    grown = resident_megabytes() - base
    begun, cpu = time.perf_counter(), time.process_time()
    counts = plain_recovery(finetuned, aligned, harmful, config)
    rows["plain"] = time.perf_counter() - begun, time.process_time() - cpu
    ours = [step.n_restored for step in recovered.steps[1:]]
    (plain, plain_cpu), (fast, fast_cpu) = rows["plain"], rows["recover"]
    text = f"""{args.steps} steps on {args.n} harmful prompts of `builtin`, smollm2 towards smollm2-safe, float32, cut
at 20 of 30 blocks; `recover` also measures both cosines and proves the weights by hash.

| | seconds | CPU seconds | against the plain one |
|---|---|---|---|
| autograd over whole padded prompts, all blocks, mini-batches of 8 | {plain:.1f} | {plain_cpu:.1f} | 1.0x |
| recover | {fast:.1f} | {fast_cpu:.1f} | {plain_cpu / fast_cpu:.1f}x |

Weights restored by each step: {ours} (plain: {counts}). Resident memory after `recover`: {grown:+.0f} MB."""
    if args.print:
        print(text)
    else:
        write_section("Alignment recovery", text)


if __name__ == "__main__":
    main()
