"""Refusal verdicts whose completions end once they are settled, against whole completions: processor seconds of both.

python -m benchmarks.early_verdicts [--n 48] [--tokens 32]
"""

import argparse
import logging
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.machine import least_processor_seconds, write_section
from interp.data.prompts import load_prompts
from interp.evaluation.early_verdicts import Verdicts, refusal_verdicts
from interp.models.chat_model import load


def main() -> None:
    """Run and write the section."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-safe")
    parser.add_argument("--n", type=int, default=48, help="prompts")
    parser.add_argument("--tokens", type=int, default=32, help="maximum length of replies")
    parser.add_argument("--rounds", type=int, default=1, help="of which the least counts; one more warms up")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, prompts = load(args.model), load_prompts("builtin")
    harmful, harmless = (list(prompts[kind, "test"].first(args.n).texts) for kind in ("harmful", "harmless"))
    sets = {"harmful": harmful, "half of each kind": harmful[: args.n // 2] + harmless[: args.n // 2]}
    rows = []
    for name, texts in sets.items():
        found: dict[bool, Verdicts] = {}

        def run(early_stop: bool, texts: list[str], found: dict[bool, Verdicts]) -> None:
            found[early_stop] = refusal_verdicts(
                model, texts, max_new_tokens=args.tokens, early_stop=early_stop
            )

        runs: dict[str, Callable[[], object]] = {
            str(early): partial(run, early, texts, found) for early in (False, True)
        }
        least = least_processor_seconds(runs, args.rounds)
        whole, early = least["False"], least["True"]
        same = "equal" if found[True].flags == found[False].flags else "NOT EQUAL"
        refused = f"{len(found[False].rows(refused=True))} of {len(texts)}"
        rows.append(f"| {name} | {refused} | {whole:.1f} | {early:.1f} | {early / whole:.2f}x | {same} |")
        print(rows[-1], flush=True)
    write_section(
        "Refusal verdicts",
        f"""{args.n} prompts of `builtin`, test, at most {args.tokens} tokens, {args.model}, float32, one thread, least
of {args.rounds} in processor seconds.

| prompts | refused | whole completions | until settled | ratio | verdicts |
|---|---|---|---|---|---|
"""
        + "\n".join(rows),
    )


if __name__ == "__main__":
    main()
