"""Passes with gradients for embeddings in the system slot: what prompts share runs once, only the last token is read.

    BEFORE | SLOT | BETWEEN | instruction, generation prompt
    frozen   trained  frozen    one row a prompt, left-padded

All prompts begin with the slot and the template around it. Their keys and values are computed once for each
optimisation step, with their autograd graph; those before the slot once for all. The rows of a step then run in small
passes, short prompts together: each is walked back at once and leaves its gradient at the shared keys and values, which
are walked back last. So memory does not grow with the rows of a step.

    passes = SlotPasses(model, slot)
    gradient, losses = passes.gradient(embeddings, rows, lambda final, rows: loss_of(final))

`fast=False` is the plain path: whole left-padded prompts in one pass. Frozen weights get no gradient on either.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from interp.engine.applying import Applied
from interp.engine.batching import pad_id, pad_left, plan_batches, shared_length
from interp.engine.budgets import PassBudget
from interp.engine.half_products import HalfWeights, half_products
from interp.models.chat_model import ChatModel
from interp.models.contexts import check_context
from interp.models.system_slots import SystemSlot

Loss = Callable[[Float[Tensor, "row pos width"], list[int]], dict[str, Tensor]]
"""Of what was read of some rows, and those rows: terms by name, of which `total` is minimised."""
_ROW_TOKENS = 384
"""Tokens of one small pass on the CPU; what is kept for the way back grows with them, the time a token does not."""


class SlotGradient(NamedTuple):
    """What one optimisation step needs."""

    gradient: Float[Tensor, "soft d_model"]
    """Gradient of the total with respect to the embeddings."""
    terms: dict[str, float]
    """Every term, summed over the passes."""


class SlotPasses:
    """Passes of prompts whose system slot holds given embeddings.

    A loss reads the state of each row's last token, after the final norm; with completions it reads logits, from each
    prompt's last token on. Rows of a pass end together.

    Args:
        completions: token ids that follow each prompt.
        products: dtype of matrix products of a float32 model on the CPU (`interp.engine.half_products`).
        fast: False takes the plain path.
    """

    def __init__(
        self,
        model: ChatModel,
        slot: SystemSlot,
        *,
        completions: Sequence[Sequence[int]] | None = None,
        products: Literal["model", "bfloat16"] = "model",
        fast: bool = True,
    ) -> None:
        tokens = slot.tokens
        after = [()] * len(tokens) if completions is None else [tuple(ids) for ids in completions]
        check_context(model, tokens, new_tokens=[len(ids) for ids in after])
        self._model, self._slot, self._logits = model, slot, completions is not None
        self._rows = [(*ids, *more) for ids, more in zip(tokens.ids, after, strict=True)]
        self._kept = [len(ids) + 1 for ids in after]
        shared = shared_length(model, tokens, Applied([]), beyond=max(map(len, after))) if fast else 0
        self.shared = shared if shared >= slot.stop else 0
        """Tokens that run once for all prompts; 0 on the plain path."""
        on_cpu = model.device.type == "cpu"
        self._weights = HalfWeights(model) if products == "bfloat16" and on_cpu else None
        with self._frozen():
            self._before = self._cache_before() if self.shared else None

    def __len__(self) -> int:
        return len(self._rows)

    @torch.no_grad()
    def _cache_before(self) -> DynamicCache:
        """Keys and values of the template before the slot."""
        cache = DynamicCache(config=self._model.hf.config)
        if self._slot.start:
            ids = torch.tensor([self._rows[0][: self._slot.start]], device=self._model.device)
            self._model.decoder(ids, past_key_values=cache, use_cache=True)
        return cache

    @torch.no_grad()
    def states(self, embeddings: Float[Tensor, "soft d_model"]) -> Float[Tensor, "row d_model"]:
        """State of every row's last token, after the final norm, float32, on the model's device."""
        out = torch.empty(len(self), self._model.d_model, device=self._model.device)
        with self._frozen():
            keys = self._shared(embeddings) if self.shared else None
            for rows in self._plan(range(len(self))):
                out[rows] = self._run(rows, embeddings, keys)[:, -1].float()
        return out

    def gradient(
        self, embeddings: Float[Tensor, "soft d_model"], rows: Sequence[int], loss: Loss
    ) -> SlotGradient:
        """Gradient with respect to the embeddings of the terms `total`, summed over these rows.

        Args:
            loss: called with what was read of some of the rows and with these rows' numbers; it divides means itself,
                since the rows come in several passes.
        """
        soft = embeddings.detach().to(self._model.device).requires_grad_()
        terms: dict[str, float] = {}
        with self._frozen(), torch.enable_grad():
            if not self.shared:
                self._walk(list(rows), soft, None, loss, terms)
            else:
                made = self._shared(soft)
                ends = [value.detach().requires_grad_() for value in made]
                for part in self._plan(rows):
                    self._walk(part, soft, ends, loss, terms)
                torch.autograd.backward(made, [end.grad for end in ends])
        assert soft.grad is not None
        return SlotGradient(soft.grad, terms)

    def _walk(
        self, rows: list[int], soft: Tensor, keys: list[Tensor] | None, loss: Loss, terms: dict[str, float]
    ) -> None:
        found = loss(self._run(rows, soft, keys), rows)
        found["total"].backward()
        for name, value in found.items():
            terms[name] = terms.get(name, 0.0) + value.item()

    def _plan(self, rows: Sequence[int]) -> list[list[int]]:
        rows, budget = list(rows), PassBudget.for_(self._model)
        lengths = [len(self._rows[row]) - self.shared for row in rows]
        most = _ROW_TOKENS if self._model.device.type == "cpu" else budget.plain_tokens
        plan = plan_batches(lengths, budget=most, max_rows=budget.rows, overhead=budget.overhead_tokens)
        return [[rows[i] for i in part] for part in plan]

    def _shared(self, soft: Tensor) -> list[Tensor]:
        """Keys and values of the shared tokens, layer by layer, with their graph."""
        model, slot = self._model, self._slot
        assert self._before is not None
        between = torch.tensor(self._rows[0][slot.stop : self.shared], dtype=torch.long, device=model.device)
        with torch.no_grad():
            rest = model.embedding(between)
        cache = _copy(self._before)
        model.decoder(
            inputs_embeds=torch.cat([soft.to(model.dtype), rest])[None], past_key_values=cache, use_cache=True
        )
        layers: list[Any] = cache.layers
        return [value for layer in layers for value in (layer.keys, layer.values)]

    def _run(
        self, rows: list[int], soft: Tensor, keys: list[Tensor] | None
    ) -> Float[Tensor, "row pos width"]:
        """What is read of these rows."""
        model, n = self._model, self.shared
        padded = pad_left([self._rows[row][n:] for row in rows], pad_id=pad_id(model), first_position=n)
        mask = torch.cat([torch.ones(len(rows), n, dtype=torch.long), padded.mask], dim=1)
        options: dict[str, Any] = {"use_cache": False}
        if keys is None:
            options["inputs_embeds"] = self._filled(rows, padded.ids, soft)
        else:
            cache = DynamicCache(config=model.hf.config)
            for layer in range(model.n_layers):
                key, value = (x.expand(len(rows), -1, -1, -1) for x in keys[2 * layer : 2 * layer + 2])
                cache.update(key, value, layer)
            options = {"input_ids": padded.ids.to(model.device), "past_key_values": cache, "use_cache": True}
        options |= {
            "attention_mask": mask.to(model.device),
            "position_ids": padded.position_ids.to(model.device),
        }
        with model.rotary.at([len(self._rows[row]) for row in rows]):
            if self._logits:
                return model.hf(**options, logits_to_keep=max(self._kept[row] for row in rows)).logits
            return model.decoder(**options).last_hidden_state[:, -1:]

    def _filled(self, rows: list[int], ids: Tensor, soft: Tensor) -> Tensor:
        """Embeddings of padded whole prompts with these in the slot."""
        model, slot = self._model, self._slot
        with torch.no_grad():
            embedded = model.embedding(ids.to(model.device))
        parts = []
        for i, row in enumerate(rows):
            start = ids.shape[1] - len(self._rows[row]) + slot.start
            parts.append(
                torch.cat([embedded[i, :start], soft.to(embedded), embedded[i, start + len(slot) :]])
            )
        return torch.stack(parts)

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """No parameter requires a gradient inside the context; other threads' passes of the fast kind wait."""
        asked = [parameter for parameter in self._model.hf.parameters() if parameter.requires_grad]
        with self._model.lock:
            try:
                for parameter in asked:
                    parameter.requires_grad_(False)
                with half_products(self._weights):
                    yield
            finally:
                for parameter in asked:
                    parameter.requires_grad_(True)


def _copy(cache: DynamicCache) -> DynamicCache:
    """A cache that grows by itself: updating replaces tensors and does not write into them."""
    fresh = copy.copy(cache)
    fresh.layers = [copy.copy(layer) for layer in cache.layers]
    return fresh
