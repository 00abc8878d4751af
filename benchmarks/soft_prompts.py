"""Training a safety prompt: one step of DRO against autograd over whole padded prompts.

    python -m benchmarks.soft_prompts [--model NAME] [--n 100] [--start short] [--print]

A step is the gradient of the three losses for 50 queries. The plain step embeds whole prompts, left-pads them in one
batch, and walks back through all of it. Ours runs what prompts share once and the rest in small passes; products in
bfloat16 are the default, as the released code runs its model in bfloat16. CPU seconds are those of the process.
"""

import argparse
import logging
import random
import statistics
import time
from functools import partial

import torch

from benchmarks.machine import write_section
from interp.data.prompts import load_prompts
from interp.data.safety_texts import safety_text
from interp.engine.safety_prompts import SafetyPrompt
from interp.engine.slot_passes import SlotPasses
from interp.models.chat_model import load
from interp.models.system_slots import system_slot
from interp.representations.safety_states import joined, query_sides
from interp.training.config import SafetyPromptConfig
from interp.training.prompt_losses import DroLoss
from interp.training.soft_prompts import fit_safety_space

WAYS = {
    "plain: whole padded prompts": {"fast": False},
    "shared prefix, small passes": {},
    "the same, products in bfloat16": {"products": "bfloat16"},
}


def main() -> None:
    """Run and write the section."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-safe")
    parser.add_argument("--n", type=int, default=100, help="queries of each kind")
    parser.add_argument("--start", default="short")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--print", action="store_true", help="print, and leave results.md as it is")
    args = parser.parse_args()
    model, prompts = load(args.model), load_prompts("builtin")
    harmful, harmless = (prompts[kind, "train"].first(args.n) for kind in ("harmful", "harmless"))
    config = SafetyPromptConfig()
    began = time.process_time()
    space = fit_safety_space(model, harmful, harmless, config=config)
    anchoring = time.process_time() - began
    sides = query_sides({"harmful": harmful, "harmless": harmless})
    begin = SafetyPrompt.from_text(model, safety_text(args.start))
    slot = system_slot(model.tokenizer, joined(sides), begin.text)
    labels = (torch.arange(2 * args.n) < args.n).float()
    rows = random.Random(0).sample(range(2 * args.n), min(config.batch_size, 2 * args.n))
    step = partial(DroLoss, space)(SlotPasses(model, slot).states(begin.embeddings), labels, config)
    theta = begin.embeddings + 0.01 * torch.randn(
        begin.embeddings.shape, generator=torch.Generator().manual_seed(0)
    )
    seconds, cpu, gradients = {}, {}, {}
    for name, options in WAYS.items():
        passes = SlotPasses(model, slot, **options)
        walls, cpus = [], []
        for round_ in range(args.repeats + 1):
            wall, used = time.perf_counter(), time.process_time()
            gradients[name] = passes.gradient(theta, rows, partial(step, of=len(rows))).gradient
            if round_:  # the first warms up
                walls.append(time.perf_counter() - wall)
                cpus.append(time.process_time() - used)
        seconds[name], cpu[name] = statistics.median(walls), statistics.median(cpus)
    plain = next(iter(WAYS))
    steps = config.epochs * -(-2 * args.n // config.batch_size)
    table = "\n".join(
        f"| {name} | {seconds[name]:.2f} | {cpu[name]:.2f} | {cpu[plain] / cpu[name]:.1f}x | {cpu[name] * steps:.0f} | "
        f"{(gradients[name] - gradients[plain]).norm() / gradients[plain].norm():.1e} |"
        for name in WAYS
    )
    text = f"""{args.n} + {args.n} queries of `builtin`, {model.name}, float32, safety prompt `{args.start}` of
{len(slot)} tokens; a step of {len(rows)} queries (median of {args.repeats}), {steps} steps in all. Fitting the plane
before: {anchoring:.0f} CPU s.

| | s a step | CPU s a step | faster by (CPU) | CPU s in all | relative error of the gradient |
|---|---|---|---|---|---|
{table}"""
    if args.print:
        print(text)
    else:
        write_section("Safety prompts", text)


if __name__ == "__main__":
    main()
