"""All zero-shot scores of texts against one plain forward pass over them in batches; DetectGPT by prefix trees.

    python -m benchmarks.machine_text [--model NAME] [--n 400] [--tokens 150] [--versions 100] [--repeats 3]

Tasks: every score of n texts of a number of tokens, float32, where the plain pass computes logits and keeps nothing of
them; and DetectGPT of one text with its perturbed versions, as one prefix tree and each version by itself.
"""

import argparse
import logging

import torch

from benchmarks.machine import interleaved_medians, resident_megabytes, write_section
from interp.data.human_texts import bundled_passages
from interp.detectors.machine_text.perturbation import perturbation_scores
from interp.detectors.machine_text.perturbers import WordPerturber
from interp.detectors.machine_text.reading import score_texts, stream_scores
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


def main() -> None:
    """Run and write the section."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--batch", type=int, default=4, help="texts in a plain batch")
    parser.add_argument("--versions", type=int, default=100, help="perturbed versions of DetectGPT's text")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="print only")
    args = parser.parse_args()
    model = load(args.model)
    texts, rows = texts_of(model, args.n, args.tokens)
    seconds = interleaved_medians(
        {
            "plain forward pass": lambda: plain_pass(model, rows, args.batch),
            "score_texts": lambda: score_texts(model, texts),
        },
        repeats=args.repeats,
    )
    plain, ours = seconds["plain forward pass"], seconds["score_texts"]

    def detect_gpt(*, fast: bool) -> None:
        perturbation_scores(model, texts[:1], WordPerturber(), n_perturbations=args.versions, fast=fast)

    apart, tree = interleaved_medians(
        {"each version by itself": lambda: detect_gpt(fast=False), "tree": lambda: detect_gpt(fast=True)},
        repeats=args.repeats,
    ).values()
    few = resident_megabytes()
    for _ in stream_scores(model, (text for _ in range(4) for text in texts[:50])):
        pass
    table = "\n".join(f"| {name} | {value:.2f} | {value / plain:.2f} |" for name, value in seconds.items())
    text = (
        f"{args.n} texts of {args.tokens} tokens, {model.name}; the plain pass runs {args.batch} texts at a time.\n\n"
        f"| | seconds | ratio |\n|---|---|---|\n{table}\n\nAll scores cost {ours / plain:.2f} times the plain pass. "
        f"Resident memory after 200 further texts: {resident_megabytes() - few:+.0f} MB. DetectGPT of one text with "
        f"{args.versions} versions: {tree:.2f} s as one prefix tree, {apart:.2f} s version by version, "
        f"{apart / tree:.2f} times as fast."
    )
    if args.dry:
        print(text)
    else:
        write_section("Machine-written text", text)


if __name__ == "__main__":
    main()
