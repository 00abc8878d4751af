"""Multiple-choice questions scored in every cyclic order of their choices, against scoring each question once.

    python -m benchmarks.multiple_choice [--questions SOURCE] [--model NAME] [--n 48]

Task: the log-probability of each option letter after the answer tag, float32. "Once" is the order of the file alone, in
padded batches of 32 of plain Hugging Face calls that compute the logits of the last position, as an evaluation harness
does it. Processor seconds, so that other work on the machine does not count.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.machine import write_section
from interp.data.multiple_choice import LETTERS, Questions, load_questions
from interp.engine.batching import pad_left
from interp.evaluation.multiple_choice import ChoiceFormat, choice_tokens, letter_ids, option_scores
from interp.models.chat_model import ChatModel, load


@torch.no_grad()
def plain_once(model: ChatModel, questions: Questions, form: ChoiceFormat) -> Tensor:
    """Every question in the order of the file, one padded batch of 32 after the other."""
    tokens = choice_tokens(model, questions.questions, questions.examples, format=form)
    ids = [variants[-1] for variants in letter_ids(model, LETTERS[:4])]
    rows = []
    for start in range(0, len(tokens), 32):
        batch = pad_left(tokens.ids[start : start + 32], pad_id=0)
        logits = model.hf(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids, logits_to_keep=1
        ).logits
        rows.append(logits[:, -1].log_softmax(-1)[:, ids])
    return torch.cat(rows)


def processor_seconds(runs: dict[str, Callable[[], object]], *, repeats: int = 3) -> dict[str, float]:
    """Median processor seconds of each, measured in turn."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            taken[name].append(time.process_time() - begin)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    """Run and write the section."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", default="builtin")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--n", type=int, default=48)
    args = parser.parse_args()
    model, questions = load(args.model), load_questions(args.questions).first(args.n)
    lines = [
        "| examples | once, plain | once, engine | all cyclic orders, engine | all orders : once, plain |"
    ]
    lines.append("|---|---|---|---|---|")
    for shots in (0, min(4, len(questions.examples))):
        form = ChoiceFormat(shots=shots)
        option_scores(model, questions.first(4), format=form)  # the self-test of the fast path, once
        seconds = processor_seconds(
            {
                "plain": lambda form=form: plain_once(model, questions, form),
                "once": lambda form=form: option_scores(model, questions, format=form, shifts="none"),
                "cyclic": lambda form=form: option_scores(model, questions, format=form),
            }
        )
        ratio = seconds["cyclic"] / seconds["plain"]
        cells = " | ".join(f"{seconds[name]:.2f} s" for name in ("plain", "once", "cyclic"))
        lines.append(f"| {shots} | {cells} | {ratio:.2f} |")
        print(lines[-1])
    lines.append("")
    lines.append(
        f"{args.model}, {len(questions)} questions of {args.questions}; processor seconds, median of 3."
    )
    write_section("Multiple choice in cyclic orders", "\n".join(lines))


if __name__ == "__main__":
    main()
