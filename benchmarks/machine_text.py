"""All zero-shot scores of texts against one plain forward pass over them in batches; DetectGPT by prefix trees.

    OMP_NUM_THREADS=1 python -m benchmarks.machine_text [--model NAME] [--n 400] [--tokens 150] [--versions 100]

Tasks: every score of n texts of a number of tokens, float32, where the plain pass computes logits and keeps nothing of
them; and DetectGPT of one text with its perturbed versions, as one prefix tree and each version by itself.

Times are processor seconds, on which other processes have less influence than on wall time. Texts are taken in parts,
each by both ways in turn, so that a drift of the machine's speed hits both alike; the ratios of the parts show what
noise is left.
"""

import argparse
import logging
import statistics
from collections.abc import Callable

import torch

from benchmarks.machine import least_processor_seconds, resident_megabytes, write_section
from interp.data.human_texts import bundled_passages
from interp.detectors.machine_text.perturbation import perturbation_scores
from interp.detectors.machine_text.perturbers import WordPerturber
from interp.detectors.machine_text.reading import score_texts
from interp.engine.batching import pad_left
from interp.models.chat_model import ChatModel, load


@torch.no_grad()
def plain_pass(model: ChatModel, rows: list[list[int]], batch: int) -> None:
    """Logits of all texts, sorted by length and padded on the left, as one would write it."""
    ordered = sorted(rows, key=len)
    for start in range(0, len(ordered), batch):
        padded = pad_left(ordered[start : start + batch], pad_id=0)
        _ = model.hf(
            input_ids=padded.ids,
            attention_mask=padded.mask,
            position_ids=padded.position_ids,
            use_cache=False,
        ).logits


def texts_of(model: ChatModel, n: int, tokens: int) -> tuple[list[str], list[list[int]]]:
    """Texts of this many tokens: the bundled passages, over and over from other places."""
    stream = [i for text in bundled_passages().texts for i in model.tokenizer(text)["input_ids"]]
    rows = [[stream[(97 * k + i) % len(stream)] for i in range(tokens)] for k in range(n)]
    texts = [str(model.tokenizer.decode(row)) for row in rows]
    return texts, [list(model.tokenizer(text)["input_ids"]) for text in texts]


def seconds_by_part(
    model: ChatModel, texts: list[str], rows: list[list[int]], *, batch: int, size: int, rounds: int
) -> list[tuple[float, float]]:
    """Processor seconds of the plain pass and of `score_texts`, for each part of this many texts."""
    least_processor_seconds(_both_ways(model, texts[:batch], rows[:batch], batch), 0)  # warms up
    found = []
    for start in range(0, len(texts), size):
        part = slice(start, start + size)
        runs = _both_ways(model, texts[part], rows[part], batch)
        plain, ours = least_processor_seconds(runs, rounds, warm_up=False).values()
        print(f"texts from {start}: plain {plain:.2f} s, score_texts {ours:.2f} s", flush=True)
        found.append((plain, ours))
    return found


def _both_ways(
    model: ChatModel, texts: list[str], rows: list[list[int]], batch: int
) -> dict[str, Callable[[], object]]:
    return {
        "plain": lambda: plain_pass(model, rows, batch),
        "score_texts": lambda: score_texts(model, texts),
    }


def main() -> None:
    """Run and write the section."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--batch", type=int, default=16, help="texts in a plain batch")
    parser.add_argument("--part", type=int, default=48, help="texts that both ways take in turn")
    parser.add_argument("--versions", type=int, default=100, help="perturbed versions of DetectGPT's text")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="print only")
    args = parser.parse_args()
    model = load(args.model)
    texts, rows = texts_of(model, args.n, args.tokens)
    parts = seconds_by_part(model, texts, rows, batch=args.batch, size=args.part, rounds=args.rounds)
    plain, ours = (sum(seconds) for seconds in zip(*parts, strict=True))
    ratios = [mine / theirs for theirs, mine in parts]

    def detect_gpt(*, fast: bool) -> None:
        perturbation_scores(model, texts[:1], WordPerturber(), n_perturbations=args.versions, fast=fast)

    few = resident_megabytes()
    apart, tree = least_processor_seconds(
        {"each version by itself": lambda: detect_gpt(fast=False), "tree": lambda: detect_gpt(fast=True)},
        args.rounds,
        warm_up=False,
    ).values()
    text = (
        f"{args.n} texts of {args.tokens} tokens, {model.name}; the plain pass runs {args.batch} texts at a time; "
        f"processor seconds, least of {args.rounds}.\n\n"
        f"| | seconds | ratio |\n|---|---|---|\n| plain forward pass | {plain:.1f} | 1.00 |\n"
        f"| score_texts | {ours:.1f} | {ours / plain:.2f} |\n\n"
        f"All scores cost {ours / plain:.2f} times the plain pass; by parts of {args.part} texts {min(ratios):.2f} to "
        f"{max(ratios):.2f}, median {statistics.median(ratios):.2f}. DetectGPT of one text with {args.versions} "
        f"versions: {tree:.1f} s as one prefix tree, {apart:.1f} s version by version, "
        f"{apart / tree:.2f} times as fast; {resident_megabytes() - few:+.0f} MB of resident memory."
    )
    if args.dry:
        print(text)
    else:
        write_section("Machine-written text", text)


if __name__ == "__main__":
    main()
