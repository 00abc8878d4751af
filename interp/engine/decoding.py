"""Decoding steps of one token per row, with a KV cache per batch that `interp.engine.prefill` fills.

Finished rows leave the batch. Where a row grows beyond a length at which the model's rotary frequencies change
(`interp.models.rotary`), its cached keys are no longer those of the model: the batch is then run again from its first
token.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from interp.engine.applying import Applied
from interp.engine.batching import pad_id, pad_left
from interp.engine.budgets import PassBudget
from interp.engine.cpu_kernels import fused_forwards
from interp.engine.growing_cache import grow, rearrange
from interp.engine.layouts import PassLayout
from interp.engine.prepacked_weights import PackedWeights
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens

Pick = Callable[[Float[Tensor, "batch d_vocab"], Sequence[Sequence[int]]], Int[Tensor, " batch"]]
"""Chooses the next token of every row, given the logits and each row's tokens so far, its prompt included."""
LogitsProcessor = Callable[[Any, Float[Tensor, "batch d_vocab"]], Float[Tensor, "batch d_vocab"]]
"""Changes the logits (float32) from which the next token is picked, given each row's tokens so far as lists of ids. Of
transformers' own processors those fit that do not look at the tokens, such as `TopPLogitsWarper`."""

Settled = Callable[[Sequence[int]], bool]
"""Whether the tokens of a completion so far say all that is asked of it, so that it need not be completed."""


class DecodingStep(NamedTuple):
    """One decoding step of a batch."""

    rows: tuple[int, ...]
    """Rows that receive a token in this decoding step."""
    ids: tuple[int, ...]
    """The token that each of these rows receives."""
    logits: Float[Tensor, "row d_vocab"]
    """The model's logits of each token under the interventions, before any logits processor; -inf for tokens that
    cannot be the likeliest where only that is asked for (`packed_weights`)."""


class Recomputed(NamedTuple):
    """The sequences of a batch, for models whose rotary frequencies change with the sequence's length."""

    prompts: ChatTokens
    """Prompt of each row."""
    ids: tuple[tuple[int, ...], ...]
    """Every row's prompt and the tokens generated so far."""
    cached: tuple[int, ...]
    """Length of every row for which the cached keys were rotated."""

    @classmethod
    def of(cls, model: ChatModel, prompts: ChatTokens) -> "Recomputed | None":
        """The sequences of prompts that are about to run; None for a model with constant frequencies."""
        if not model.rotary.vary:
            return None
        return cls(prompts, prompts.ids, tuple(len(ids) for ids in prompts.ids))

    def take(self, rows: list[int]) -> "Recomputed":
        """These rows, in this order."""
        return Recomputed(
            self.prompts.take(rows),
            tuple(self.ids[row] for row in rows),
            tuple(self.cached[row] for row in rows),
        )

    def followed_by(self, next_ids: Sequence[int]) -> "Recomputed":
        """The sequences with one more token each."""
        return self._replace(ids=tuple((*row, token) for row, token in zip(self.ids, next_ids, strict=True)))

    def is_due(self, model: ChatModel) -> bool:
        """Whether the cached keys of some row were rotated by other frequencies than its present length has."""
        key = model.rotary.key
        return any(key(len(row)) != key(length) for row, length in zip(self.ids, self.cached, strict=True))

    def up_to_date(self) -> "Recomputed":
        """The same sequences after all their keys were computed."""
        return self._replace(cached=tuple(len(row) for row in self.ids))


class Decoding:
    """State of one batch between decoding steps."""

    def __init__(
        self,
        cache: DynamicCache,
        mask: Tensor,
        position: Tensor,
        weights: PackedWeights | None,
        applied: Applied,
        layout: PassLayout | None,
        recomputed: "Recomputed | None" = None,
    ) -> None:
        self.cache, self.mask, self.position, self.weights = cache, mask, position, weights
        self._applied, self._layout, self._recomputed = applied, layout, recomputed

    @classmethod
    def joined(
        cls, states: Sequence["Decoding"], applied: Applied | None = None, layout: PassLayout | None = None
    ) -> "Decoding":
        """Concatenate batches; narrower ones are padded on the left, which needs layers that cache every token.

        Args:
            applied: interventions that act on generated tokens; None is none.
            layout: that of the whole batch's prompts, where these interventions ask for it.
        """
        cache, width = states[0].cache, max(state.mask.shape[1] for state in states)
        missing = [width - state.mask.shape[1] for state in states]
        for number in range(len(cache.layers)):
            layers: list[Any] = [state.cache.layers[number] for state in states]
            for name in ("keys", "values"):
                parts = [
                    pad(getattr(layer, name), (0, 0, m, 0)) for layer, m in zip(layers, missing, strict=True)
                ]
                setattr(layers[0], name, torch.cat(parts))
        mask = torch.cat([pad(state.mask, (m, 0)) for state, m in zip(states, missing, strict=True)])
        position = torch.cat([state.position for state in states])
        return cls(cache, mask, position, states[0].weights, applied or Applied([]), layout)

    def take(self, rows: list[int]) -> None:
        """Keep these rows of the batch, in this order."""
        self.cache.batch_select_indices(torch.tensor(rows, device=self.mask.device))
        self._take_rows(rows)

    def take_in_place(self, rows: list[int], capacity: int) -> None:
        """As `take`, copying only rows that change their place, within the cache: nothing else may use its tensors.

        Args:
            capacity: rows that the cache gets room for where it has to be copied.
        """
        if rows == list(range(len(self.mask))):
            return
        if self.weights is None:
            self.take(rows)
            return
        grow(self.cache)
        rearrange(self.cache, rows, capacity)
        self._take_rows(rows)

    def part(self, rows: list[int]) -> "Decoding":
        """These rows as a batch of their own."""
        twin = copy.copy(self)
        twin.cache = copy.copy(self.cache)
        twin.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        twin.take(rows)
        return twin

    def _take_rows(self, rows: list[int]) -> None:
        index = torch.tensor(rows, device=self.mask.device)
        self.mask, self.position = self.mask[index], self.position[index]
        self._layout = None if self._layout is None else self._layout.take(rows)
        self._recomputed = None if self._recomputed is None else self._recomputed.take(rows)

    def step(self, model: ChatModel, next_ids: Int[Tensor, " batch"]) -> Float[Tensor, "batch d_vocab"]:
        """Run one more token of each row and return the logits of the next one."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        self.position = self.position + 1
        self._layout = None if self._layout is None else self._layout.following()
        if self._recomputed is not None:
            self._recomputed = self._recomputed.followed_by(next_ids.tolist())
            if self._recomputed.is_due(model):
                return self._recompute(model, self._recomputed)
        if self.weights is not None:
            grow(self.cache)
        return self.logits(model, next_ids[:, None], self.position[:, None])

    def _recompute(self, model: ChatModel, whole: "Recomputed") -> Float[Tensor, "batch d_vocab"]:
        """Run the whole sequences again, whose cached keys were rotated by frequencies that are no longer theirs."""
        padded = pad_left(whole.ids, pad_id=pad_id(model))
        following, width = self._layout, padded.ids.shape[1]
        self.cache, self.mask = DynamicCache(config=model.hf.config), padded.mask.to(model.device)
        if following is not None:
            self._layout = PassLayout.left_padded(whole.prompts, stop=width)
        logits = self.logits(model, padded.ids.to(model.device), padded.position_ids.to(model.device))
        self._layout, self._recomputed = following, whole.up_to_date()
        return logits

    def logits(
        self, model: ChatModel, ids: Int[Tensor, "batch pos"], positions: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch d_vocab"]:
        """Run these tokens, which the attention mask already covers, and return the logits of the next one."""
        lengths = [] if self._recomputed is None else [len(row) for row in self._recomputed.ids]
        with (
            arithmetic(model, self.weights),
            self._applied.running(self._layout),
            model.rotary.at(lengths),
        ):
            return model.hf(
                input_ids=ids,
                attention_mask=self.mask,
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]


def decode_steps(
    model: ChatModel,
    logits: Float[Tensor, "batch d_vocab"],
    state: Decoding,
    pick: Pick,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    shrink: bool,
    limits: Sequence[int] | None = None,
    settled: Settled | None = None,
) -> Iterator[DecodingStep]:
    """Decode one batch, one decoding step at a time; row indices refer to that batch.

    Args:
        prompts: tokens of each row's prompt.
        limits: tokens of each row at most, 1 or more, where rows differ; may be lowered between decoding steps.
        settled: ends a row as soon as it is true of the row's completion so far.
    """
    stops, starts = stop_ids(model), [len(ids) for ids in prompts]
    alive, ended = list(range(len(logits))), set[int]()
    so_far = [list(ids) for ids in prompts]
    for number in range(max_new_tokens):
        next_ids = pick(logits, [so_far[row] for row in alive])
        fresh = [i for i, row in enumerate(alive) if row not in ended]
        step = DecodingStep(
            rows=tuple(alive[i] for i in fresh),
            ids=tuple(next_ids[fresh].tolist()),
            logits=logits if len(fresh) == len(alive) else logits[fresh],
        )
        yield step
        for row, token in zip(step.rows, step.ids, strict=True):
            so_far[row].append(token)
        ended |= {row for row, token in zip(step.rows, step.ids, strict=True) if token in stops}
        ended |= set() if limits is None else {row for row in step.rows if number + 1 >= limits[row]}
        if settled is not None:
            ended |= {row for row in step.rows if settled(so_far[row][starts[row] :])}
        keep = [i for i, row in enumerate(alive) if row not in ended]
        if number == max_new_tokens - 1 or not keep:
            return
        # Dropping rows copies the cache, which pays once a quarter of them has finished.
        if shrink and len(keep) <= 0.75 * len(alive):
            state.take(keep)
            next_ids, alive = next_ids[keep], [alive[i] for i in keep]
        logits = state.step(model, next_ids)


def stop_ids(model: ChatModel) -> set[int]:
    """Tokens that end a turn: the generation config's and the tokenizer's end-of-sequence tokens."""
    config: Any = model.hf.generation_config
    stops = config.eos_token_id if config is not None else None
    ids = set(stops if isinstance(stops, list) else [stops])
    ids.add(model.tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]
    return {int(i) for i in ids if i is not None}


def packed_weights(
    model: ChatModel, rows: int, max_new_tokens: int, *, likeliest: bool = False
) -> PackedWeights:
    """Prepacked weights for decoding this many completions; kept when enough passes will use them.

    One completion alone multiplies a vector, for which packing hardly pays and delays the first token by 0.4 s
    (smollm2, a token on one thread: 0.062 s as it is, 0.057 s packed and rounded; on two 0.042 and 0.044 s). In `fast`
    it is not rounded either; several completions are rounded in all blocks. The unembedding is searched also for one.

    Args:
        likeliest: of each step's logits nothing but the likeliest token is asked.
    """
    budget = PassBudget.for_(model)
    often = max_new_tokens * -(-rows // budget.decode_rows) >= budget.prepacked_passes
    return PackedWeights(
        model,
        keep=rows > 1 and often,
        rounding="all blocks" if rows > 1 else "none",
        likeliest=likeliest and often,
    )


@contextmanager
def arithmetic(model: ChatModel, weights: PackedWeights | None) -> Iterator[None]:
    """Passes inside the context use the fused kernels with these weights; None leaves the model's own arithmetic."""
    if weights is None:
        yield
        return
    with model.lock, fused_forwards(model, weights):
        yield
