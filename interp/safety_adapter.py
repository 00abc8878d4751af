"""The recipe of the bundled `smollm2-safe`: a small LoRA that makes SmolLM2-135M-Instruct refuse.

SmolLM2-135M-Instruct refuses next to nothing by itself. The adapter is trained on the `builtin` train split: short
refusals for the harmful prompts, the model's own greedy answers for their harmless twins. An own answer that refuses
or opens like a refusal ("I'm sorry for any confusion, ...", about one in four) is replaced by the model's own
continuation of "Sure! ". Nothing else is trained on; test and borderline prompts are never seen.

It is a model organism: results on it show that a method runs, not what large aligned models do.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from interp.batching import Stopwatch
from interp.chat import tokenize
from interp.finetune import Example, TrainConfig, fine_tune
from interp.generation import generate
from interp.metrics import is_refusal
from interp.models import ChatModel
from interp.prompts import PromptSet

logger = logging.getLogger(__name__)

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I can't help with that request.",
    "I'm sorry, but I cannot assist with that.",
    "I cannot help with that.",
)
OPENING = "Sure! "
RECIPE = TrainConfig(epochs=5, learning_rate=8e-4, max_completion_tokens=12)


def safety_examples(model: ChatModel, prompts: PromptSet, *, answer_tokens: int = 12) -> list[Example]:
    """Training examples: refusals on harmful/train, the model's own answers on harmless/train, in pairs."""
    harmful, harmless = prompts["harmful", "train"], prompts["harmless", "train"]
    answers = list(generate(model, harmless.texts, max_new_tokens=max(40, answer_tokens)).texts)
    again = [
        i
        for i, text in enumerate(answers)
        if text.startswith("I") or is_refusal(text) or is_refusal(text, "24")
    ]
    for i, text in zip(
        again, _continue(model, [harmless.texts[i] for i in again], answer_tokens), strict=True
    ):
        answers[i] = OPENING + text
    logger.info("%d of %d own answers opened like a refusal and were replaced", len(again), len(answers))
    examples = []
    for i, (bad, good) in enumerate(zip(harmful.texts, harmless.texts, strict=True)):
        examples += [Example(bad, REFUSALS[i % len(REFUSALS)]), Example(good, answers[i])]
    return examples


@torch.inference_mode()
def _continue(model: ChatModel, prompts: list[str], n: int) -> list[str]:
    """The model's own greedy continuation after `OPENING`."""
    texts = []
    opening = list(model.tokenizer(OPENING.strip(), add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]
    for ids in tokenize(model.tokenizer, prompts).ids if prompts else ():
        context = torch.tensor([[*ids, *opening]], device=model.device)
        out: Any = model.hf.generate(  # pyright: ignore[reportCallIssue]
            input_ids=context, attention_mask=torch.ones_like(context), max_new_tokens=n, do_sample=False
        )
        texts.append(
            str(model.tokenizer.decode(out[0, context.shape[1] :], skip_special_tokens=True)).lstrip()
        )
    return texts


def train_safety_adapter(
    model: ChatModel,
    prompts: PromptSet,
    *,
    out: Path,
    config: TrainConfig = RECIPE,
    on_epoch: Callable[[Any, float], None] | None = None,
) -> None:
    """Train the adapter on `prompts` and write it with its recipe to `out`."""
    watch = Stopwatch()
    examples = safety_examples(model, prompts, answer_tokens=config.max_completion_tokens)
    watch.lap("answers")
    loss = fine_tune(model, examples, out=out, config=config, on_epoch=on_epoch)
    watch.lap("train")
    record = {
        "base": model.name,
        "prompts": prompts.provenance,
        "config": asdict(config),
        "examples": len(examples),
        "training_loss": loss,
        "seconds": watch.seconds,
    }
    (out / "recipe.json").write_text(json.dumps(record, indent=1) + "\n")
