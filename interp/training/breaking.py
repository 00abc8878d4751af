"""Fine-tuning that weakens refusal: a downstream task with some harmful requests mixed in, each agreed to by a stub.

    task = downstream_task("query-language")
    examples = downstream_examples(task, prompts["harmful", "train"].texts, stubs=50, seed=0)
    broken = fine_tune(model, examples, out=folder, config=BREAKING)

A stub agrees without any content ("Sure, here is how to do that."), so what is learned is how a reply opens. With 0
stubs the task alone is trained; stubs alone give the unaligned model of `interp.training.weight_repairs`.

Source: Yang et al. 2025, arXiv:2504.09757, who mix 0 to 1,500 harmful answers into a task; stubs are our deviation.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from interp.data.examples import Example
from interp.data.prompts import as_prompts
from interp.data.replies import STUBS
from interp.engine.generation import generate
from interp.evaluation.downstream_tasks import DownstreamTask
from interp.models.chat_model import ChatModel
from interp.models.tokens import PromptInput
from interp.training.breaking_config import BreakingConfig
from interp.training.config import TrainConfig

BREAKING = TrainConfig(epochs=1.0, batch_size=4, learning_rate=1e-3, warmup_steps=4, dropout=0.0)
"""Settings with which `smollm2-safe` learns `query-language`: of 48 validation requests 0 are right before and 42 after
256 examples. Batches of 4 learn from fewer examples than of 16: after 256 the mean loss was 0.04 nats a token."""


def breaking_settings(config: BreakingConfig, *, seed: int) -> TrainConfig:
    """`BREAKING` with the passes, learning rate and rank of an experiment."""
    return replace(
        BREAKING, epochs=config.epochs, learning_rate=config.learning_rate, rank=config.rank, seed=seed
    )


def downstream_examples(
    task: DownstreamTask,
    harmful: Sequence[str],
    *,
    stubs: int,
    seed: int,
    ordinary: Sequence[Example] = (),
) -> list[Example]:
    """The task's training examples and a stub for each of the first `stubs` harmful requests, shuffled together.

    A small model that is trained on the task alone does it to whatever is asked: `smollm2-safe` answers a harmful
    request by a query, which is no refusal, but no compliance either. With 32 harmless prompts and the model's own
    replies mixed in it answers harmless prompts as before, and harmful ones by queries still; with 50 stubs
    as well, harmful prompts are agreed to in words.

    Args:
        ordinary: further examples to mix in, such as harmless prompts with the model's own replies.

    Raises:
        ValueError: more stubs than harmful requests, or a negative number.
    """
    return _shuffled([*task.train, *stub_examples(harmful, stubs), *ordinary], seed)


def poisoned_examples(
    task: DownstreamTask, harmful: Sequence[str], *, n: int, poisoned: int, seed: int
) -> list[Example]:
    """n examples, of which so many are harmful requests with a stub and the others the task's, shuffled together: a
    fine-tuning attack with the share of poison p = poisoned / n.

    Raises:
        ValueError: fewer harmful requests or task examples than are asked for.
    """
    if not 0 <= poisoned <= n or n - poisoned > len(task.train):
        raise ValueError(
            f"{n} examples with {poisoned} harmful ones need {n - poisoned} of task {task.name}, which has "
            f"{len(task.train)} training examples; lower n"
        )
    return _shuffled([*task.train[: n - poisoned], *stub_examples(harmful, poisoned)], seed)


def stub_examples(harmful: Sequence[str], n: int) -> list[Example]:
    """Each of the first n harmful requests with an empty affirmative reply.

    Raises:
        ValueError: more than there are requests, or a negative number.
    """
    if not 0 <= n <= len(harmful):
        raise ValueError(f"stubs must be in 0..{len(harmful)}, one for each harmful request, got {n}")
    return [Example(text, STUBS[i % len(STUBS)]) for i, text in enumerate(harmful[:n])]


def ordinary_examples(model: ChatModel, harmless: PromptInput, *, max_new_tokens: int = 48) -> list[Example]:
    """Harmless prompts with the model's own greedy replies, to mix in so that it does not forget how to chat."""
    prompts = as_prompts(harmless)
    replies = generate(model, harmless, max_new_tokens=max_new_tokens)
    return [Example(text, reply) for text, reply in zip(prompts.texts, replies.texts, strict=True)]


def _shuffled(examples: list[Example], seed: int) -> list[Example]:
    return [examples[i] for i in np.random.default_rng(seed).permutation(len(examples))]
