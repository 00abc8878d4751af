"""Scoring prompts with Latent Guard against running each prompt through the model with all hidden states.

python -m benchmarks.guard [--model NAME] [--n 1000]
"""

import argparse
import logging
import time
from itertools import cycle, islice

import torch

from benchmarks.machine import resident_megabytes, write_section
from interp.data.prompts import load_prompts
from interp.detectors.latent_guard import LatentGuard
from interp.models.chat_model import ChatModel, load
from interp.models.tokens import tokenize
from interp.representations.beliefs import belief


@torch.no_grad()
def plain_scores(model: ChatModel, guard: LatentGuard, texts: list[str]) -> list[float]:
    """Harmfulness of each prompt from its own `hf(..., output_hidden_states=True)`."""
    found = []
    for text in texts:
        tokens = tokenize(model.tokenizer, [text])
        hidden = model.hf(torch.tensor([tokens.ids[0]]), output_hidden_states=True).hidden_states
        # The last of them has passed the final norm: it is left out on both sides.
        read = torch.stack([h[0, tokens.ends[0] - 1] for h in hidden[:-1]])[None]
        centres = guard.harm.positive[:-1], guard.harm.negative[:-1]
        margin = type(guard.harm)(positive=centres[0], negative=centres[1]).margin(read)
        found.append(belief(margin).item())
    return found


def main() -> None:
    """Run and write the section."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-safe")
    parser.add_argument("--n", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(2)
    model, prompts = load(args.model), load_prompts("builtin", ending="period")
    guard = LatentGuard.fit(model, prompts, layers=range(model.n_layers))
    pool = [
        t for split in ("test", "val", "train") for k in ("harmful", "harmless") for t in prompts[k, split]
    ]
    texts = list(islice(cycle(pool), args.n))
    guard.score(model, texts[:256])
    seconds, ours = [], []
    for _ in range(3):
        begun = time.perf_counter()
        ours = [s.harmfulness for s in guard.stream(model, iter(texts))]
        seconds.append(time.perf_counter() - begun)
    begun = time.perf_counter()
    plain = plain_scores(model, guard, texts)
    plain_seconds = time.perf_counter() - begun
    gap = max(abs(a - b) for a, b in zip(ours, plain, strict=True))
    base, memory = resident_megabytes(), []
    for n in (args.n, 3 * args.n):
        for _ in guard.stream(model, islice(cycle(pool), n)):
            pass
        memory.append(f"{n}: {resident_megabytes() - base:+.0f} MB")
    fast = sorted(seconds)[1]
    write_section(
        "Latent Guard",
        f"""{args.n} prompts of `builtin` ({len(set(texts))} different), {model.name}, float32.

| | seconds | prompts a second | against the loop |
|---|---|---|---|
| hf(..., output_hidden_states=True), one prompt at a time | {plain_seconds:.1f} | {args.n / plain_seconds:.0f} | 1.0x |
| guard.stream (median of 3) | {fast:.1f} | {args.n / fast:.0f} | {plain_seconds / fast:.1f}x |

Largest difference of a score: {gap:.1e}. Resident memory against that after the runs above: {", ".join(memory)}
(prompts: memory).""",
    )


if __name__ == "__main__":
    main()
