"""The model's size and the tokens of prompts and examples: what plans are made of (`interp.experiments.plans`).

    sizes.read(part)                       # activations of prompts, each distinct beginning run once
    sizes.replies(part, 24)                # completions
    sizes.supervised(examples, batch_size=4)

Every method gives the `Work` of one call of the engine or of a trainer, at most: replies may end early. Imports no
torch.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from interp.data.examples import Example
from interp.data.prompt_sets import Kind, Prompts, PromptSet, Split
from interp.data.replies import STUBS
from interp.engine.costs import DECODE_ROWS, PACKED_PROMPTS, Work
from interp.models.model_sizes import ModelSize
from interp.models.token_counts import TokenCounter

T = TypeVar("T")
COMPLETION_TOKENS = 64
"""Tokens at which a completion is cut in training (`TrainConfig.max_completion_tokens`)."""


@dataclass(frozen=True, eq=False)
class Sizes:
    """The model's size and the prompts' tokens: what a plan is made of."""

    model: ModelSize
    counter: TokenCounter
    prompts: PromptSet
    itemsize: int = 4
    """Bytes of a number of the model's dtype."""

    @cached_property
    def n_post(self) -> int:
        """Tokens of the template after the instruction."""
        return self.counter.n_post()

    def part(self, kind: Kind, split: Split, n: int) -> Prompts:
        """At most `n` prompts of a kind and split; none where the set has none."""
        if (kind, split) not in self.prompts:
            return Prompts(texts=(), ids=(), categories=(), source=self.prompts.name)
        return self.prompts[kind, split].first(n)

    def read(self, *parts: Prompts, roles: int = 2, layers: int | None = None, system: str = "") -> Work:
        """Activations of prompts, each distinct beginning run once.

        Args:
            system: system message of the prompts; an empty one leaves it to the template.
        """
        ids = self.counter.ids([text for part in parts for text in part.texts], system=system)
        held = len(ids) * roles * (self.model.n_layers if layers is None else layers) * self.model.d_model
        return Work(read_tokens=distinct(ids), held_numbers=held)

    def first_tokens(self, *parts: Prompts, system: str = "") -> Work:
        """Log-probabilities of the token after each prompt."""
        work = self.read(*parts, roles=0, system=system)
        return work + Work(unembedded=sum(map(len, parts)))

    def replies(
        self,
        part: Prompts,
        max_new_tokens: int,
        *,
        arms: int = 1,
        together: bool = False,
        system: str = "",
        samples: int = 1,
    ) -> Work:
        """Completions of prompts under each of several arms.

        Args:
            together: whether all arms decode in one batch, as in `generate_each`.
            samples: completions of each prompt, whose prompts run as often.
        """
        ids = self.counter.ids(part.texts, system=system) * samples
        return replied(ids, max_new_tokens, arms=arms, together=together)

    def scored(self, part: Prompts, tokens: int | Sequence[int]) -> Work:
        """Log-probabilities at every token of completions; every prompt runs whole.

        Args:
            tokens: of each completion, or of all of them together.
        """
        total = tokens if isinstance(tokens, int) else sum(tokens)
        prompts = sum(map(len, self.counter.ids(part.texts)))
        return Work(read_tokens=prompts + total, unembedded=total)

    def ended(self, part: Prompts, tokens: Sequence[int]) -> Work:
        """States at the end of replies, as rewards read them: replies to one prompt run it once.

        Args:
            part: the prompt of each reply, as often as it has replies.
            tokens: of each reply, its end left out.
        """
        if not len(part):
            return Work()
        return Work(read_tokens=distinct(self.counter.ids(part.texts)) + sum(own + 1 for own in tokens))

    def supervised(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int,
        epochs: float | int = 1,
        completion_tokens: int = COMPLETION_TOKENS,
        packed: bool = True,
    ) -> Work:
        """Training on the completions of examples, whose prompts run once where they begin alike.

        Args:
            packed: False for training with dropout, whose rows run padded.
        """
        prompts = self.counter.ids([example.prompt for example in examples])
        replies = self.counter.lengths([example.completion for example in examples])
        after = [min(n + 1, completion_tokens) for n in replies]
        if not packed:
            rows = [(len(ids), n) for ids, n in zip(prompts, after, strict=True)]
            return self.trained(rows, batch_size=batch_size, epochs=epochs)
        batches = [
            (distinct([ids for ids, _ in batch]) + sum(n - 1 for _, n in batch), sum(n for _, n in batch))
            for batch in _batches(list(zip(prompts, after, strict=True)), batch_size, epochs)
        ]
        return self._steps(batches)

    def trained(self, rows: Sequence[tuple[int, int]], *, batch_size: int, epochs: float | int = 1) -> Work:
        """Training on padded rows of so many prompt and completion tokens."""
        batches: list[tuple[int, int]] = []
        for batch in _batches(rows, batch_size, epochs):
            before, after = (max(row[side] for row in batch) for side in (0, 1))
            batches.append((len(batch) * (before + after), len(batch) * (after + 1)))
        return self._steps(batches)

    def _steps(self, batches: Sequence[tuple[int, int]]) -> Work:
        """Training steps of so many tokens and logits."""
        return Work(
            gradient_tokens=sum(tokens for tokens, _ in batches),
            gradient_passes=len(batches),
            gradient_unembedded=sum(logits for _, logits in batches),
            held_numbers=self.kept_for_gradients(max(tokens for tokens, _ in batches)),
        )

    def kept_for_gradients(self, tokens: int) -> int:
        """Numbers that a pass with gradients keeps: what goes into and comes out of every product of a block."""
        return tokens * self.model.n_layers * 2 * self.model.active_weights // self.model.d_model


def _batches(rows: Sequence[T], size: int, epochs: float | int) -> list[list[T]]:
    """Batches of every pass; which rows meet in one is drawn."""
    drawn = random.Random(0)
    passes = [drawn.sample(rows, len(rows)) for _ in range(-(-round(1000 * epochs) // 1000))]
    seen = [row for rows in passes for row in rows][: max(1, round(epochs * len(rows)))]
    return [seen[first : first + size] for first in range(0, len(seen), size)]


def replied(
    ids: Sequence[Sequence[int]], max_new_tokens: int, *, arms: int = 1, together: bool = False
) -> Work:
    """Completions of prompts, as `Sizes.replies`."""
    if not ids:
        return Work()
    prefill = prefilled(ids)
    rows = len(ids) * arms if together else len(ids)
    batches = -(-rows // DECODE_ROWS) * (1 if together else arms)
    return Work(
        read_tokens=prefill * arms,
        unembedded=len(ids) * arms,
        decoded_tokens=len(ids) * arms * (max_new_tokens - 1),
        decoding_steps=batches * (max_new_tokens - 1),
        cached_tokens=min(rows, DECODE_ROWS) * (max(map(len, ids)) + max_new_tokens),
    )


def as_part(texts: Sequence[str], source: str = "texts") -> Prompts:
    """Texts as prompts."""
    return Prompts(tuple(texts), tuple(map(str, range(len(texts)))), (None,) * len(texts), source)


def stubs(harmful: Sequence[str], n: int) -> list[Example]:
    """The first n requests with an empty affirmative reply, as `interp.training.breaking.stub_examples` gives them."""
    return [Example(text, STUBS[row % len(STUBS)]) for row, text in enumerate(harmful[:n])]


def distinct(ids: Sequence[Sequence[int]]) -> int:
    """Tokens of prompts when each distinct beginning counts once, as packed passes run them."""
    total = 0
    before: tuple[int, ...] = ()
    for row in sorted(map(tuple, ids)):
        total += len(row) - common_prefix([before, row])
        before = row
    return total


def prefilled(ids: Sequence[Sequence[int]]) -> int:
    """Tokens of prompts before they are completed: of few, what all begin with once, then those of each, beside others
    of their length (the little padding is left out); of many, each distinct beginning of those that decode together.
    """
    if len(ids) < PACKED_PROMPTS:
        shared = min(common_prefix(ids), min(map(len, ids)) - 1)
        return shared + sum(len(row) - shared for row in ids)
    ordered = sorted(ids, key=len)
    size = -(-len(ids) // -(-len(ids) // DECODE_ROWS))
    return sum(distinct(ordered[first : first + size]) for first in range(0, len(ids), size))


def common_prefix(ids: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all rows begin with."""
    rows = [tuple(row) for row in ids]
    low, high = min(rows), max(rows)
    for i, (a, b) in enumerate(zip(low, high, strict=False)):
        if a != b:
            return i
    return min(len(low), len(high))
