"""Sampling prefix trees of tokens: a segment's keys and values are computed once and serve all that follows it.

    segments = sample_trees(model, tokens, TreeShape(depth=3, branching=2, segment_tokens=12), seed=0)
    segments[0][1]          # tokens of the first tree's first segment; its children are 3 and 4

All branches of a prompt decode in one batch, from one run of the prompt. Where a segment ends, its row becomes as many
rows as it has children: their cached keys and values are copied within the cache, nothing is run again. A segment's
tokens come from random numbers of its own (see `interp.engine.sampling`), so that they depend neither on the batch nor
on the other prompts, and equal those of a computation that runs every prefix from its first token.

Segments are numbered as in a complete tree: 0 is the prompt, and the children of n are `n * branching + 1` and on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.engine.applying import apply
from interp.engine.budgets import PassBudget
from interp.engine.decoding import Decoding, packed_weights, stop_ids
from interp.engine.packed_prefill import packing_pays
from interp.engine.prefill import decoding_passes
from interp.engine.sampling import at_quantiles, check_sampling
from interp.models.chat_model import ChatModel
from interp.models.contexts import check_context
from interp.models.tokens import ChatTokens

Segments = dict[int, tuple[int, ...]]
"""Tokens of every segment of a tree, by its number."""


@dataclass(frozen=True, kw_only=True)
class TreeShape:
    """How trees grow."""

    depth: int
    """Levels of segments."""
    branching: int
    """Segments after each one."""
    segment_tokens: int
    """Maximum tokens of a segment."""
    temperatures: tuple[float, ...] = (1.0,)
    """Of each level; the last one also of all that follow. 0 is greedy."""

    def __post_init__(self) -> None:
        if min(self.depth, self.branching, self.segment_tokens) < 1:
            raise ValueError(
                "depth, branching and segment_tokens must be 1 or more, got "
                f"{self.depth}, {self.branching}, {self.segment_tokens}"
            )

    def temperature(self, level: int) -> float:
        """Of this level, from 0."""
        return float(self.temperatures[min(level, len(self.temperatures) - 1)])


@dataclass(eq=False)
class _Row:
    """A segment that is being sampled."""

    tree: int
    number: int
    level: int
    uniforms: list[float]
    ids: list[int] = field(default_factory=list)


def uniforms_of(seed: int, tree: int, number: int, n: int) -> list[float]:
    """The random numbers of a segment, one for each of its tokens."""
    return np.random.default_rng([seed, tree, number]).random(n).tolist()


def sample_trees(
    model: ChatModel,
    tokens: ChatTokens,
    shape: TreeShape,
    *,
    seed: int = 0,
    ends: Callable[[int], bool] | None = None,
) -> list[Segments]:
    """The segments of one tree for every prompt; an answer that the model ends has none after it.

    Args:
        ends: whether a token ends a segment before its maximum length.

    Raises:
        ValueError: a temperature or seed out of range, or a prompt that does not fit with its answers.
    """
    for level in range(shape.depth):
        check_sampling(shape.segment_tokens, shape.temperature(level), seed)
    check_context(model, tokens, new_tokens=shape.depth * shape.segment_tokens)
    done: list[Segments] = [{} for _ in range(len(tokens))]
    new_tokens = shape.depth * shape.segment_tokens
    together = PassBudget.for_(model).decoded_together(max(map(len, tokens.ids)) + new_tokens)
    grown = _Growth(
        model, shape, seed, ends or (lambda _: False), done, max_rows=max(together, shape.branching)
    )
    weights = packed_weights(model, len(tokens) * shape.branching**shape.depth, new_tokens)
    packs = packing_pays(model, tokens)
    with torch.no_grad(), apply(model, ()) as applied:
        passes = decoding_passes(model, tokens, applied, weights, new_tokens, packs=packs)
        for rows, (logits, state) in passes:
            grown.grow([_Row(row, 0, -1, []) for row in rows], logits, state)
    return [dict(sorted(segments.items())) for segments in done]


class _Growth:
    """Decodes batches of rows whose number changes; batches that grow too large are cut, and a part waits."""

    def __init__(
        self,
        model: ChatModel,
        shape: TreeShape,
        seed: int,
        ends: Callable[[int], bool],
        done: list[Segments],
        *,
        max_rows: int,
    ) -> None:
        self._model, self._shape, self._seed, self._ends, self._done = model, shape, seed, ends, done
        self._stops, self._max_rows = stop_ids(model), max_rows

    def grow(self, prompts: list[_Row], logits: Float[Tensor, "batch d_vocab"], state: Decoding) -> None:
        """Everything that follows these prompts."""
        waiting = [(*self._following(prompts), logits, state)]
        while waiting:
            sources, rows, logits, state = waiting.pop()
            parts = -(-len(rows) // self._max_rows)
            size = -(-len(rows) // parts)
            for start in range(size, len(rows), size):
                part = sources[start : start + size]
                order = list(range(len(part)))
                waiting.append((order, rows[start : start + size], logits[part], state.part(part)))
            sources, rows = sources[:size], rows[:size]
            logits = logits[sources]
            state.take_in_place(sources, self._max_rows)
            self._sample(rows, logits)
            sources, following = self._following(rows)
            if not following:
                continue
            next_ids = torch.tensor([row.ids[-1] for row in rows], device=logits.device)
            if len(following) < len(rows):  # a row that has ended needs no logits
                state.take_in_place(sources, self._max_rows)
                next_ids, sources = next_ids[sources], list(range(len(sources)))
            waiting.append((sources, following, state.step(self._model, next_ids), state))

    def _sample(self, rows: Sequence[_Row], logits: Float[Tensor, "batch d_vocab"]) -> None:
        """Give every row its next token."""
        uniforms = [row.uniforms[len(row.ids)] for row in rows]
        heats = [self._shape.temperature(row.level) for row in rows]
        for row, token in zip(rows, at_quantiles(logits, uniforms, heats), strict=True):
            row.ids.append(token)

    def _following(self, rows: Sequence[_Row]) -> tuple[list[int], list[_Row]]:
        """The rows after this decoding step, and the place of the row before each; most of them stay in their place."""
        stay: dict[int, _Row] = {}
        more: list[tuple[int, _Row]] = []
        for place, row in enumerate(rows):
            heirs = self._heirs(row)
            if heirs:
                stay[place] = heirs[0]
            more += [(place, heir) for heir in heirs[1:]]
        count = len(stay) + len(more)
        # Those beyond the end move into the places of rows that have ended.
        more += [(place, stay.pop(place)) for place in sorted(stay) if place >= count]
        after: list[tuple[int, _Row]] = []
        for place in range(count):
            after.append((place, stay[place]) if place in stay else more.pop())
        return [place for place, _ in after], [row for _, row in after]

    def _heirs(self, row: _Row) -> list[_Row]:
        """The row itself while its segment goes on, the children of one that has ended."""
        stopped = bool(row.ids) and row.ids[-1] in self._stops
        full = len(row.ids) == self._shape.segment_tokens or (bool(row.ids) and self._ends(row.ids[-1]))
        if row.number > 0:
            if not stopped and not full:
                return [row]
            self._done[row.tree][row.number] = tuple(row.ids)
            if stopped or row.level == self._shape.depth - 1:
                return []
        numbers = range(row.number * self._shape.branching + 1, (row.number + 1) * self._shape.branching + 1)
        return [
            _Row(row.tree, n, row.level + 1, uniforms_of(self._seed, row.tree, n, self._shape.segment_tokens))
            for n in numbers
        ]
