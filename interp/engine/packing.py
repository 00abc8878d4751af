"""Passes over packed batches: each distinct prefix of a set of prompts runs once, without padding.

Everything but attention treats tokens one by one and runs on a packed sequence (`interp.engine.prefix_trees`) as it is.
Attention unfolds the nodes into one row per prompt, attends there, and folds the rows back
(`interp.engine.unfolded_attention`).

The last block that a pass reaches needs the keys and values of every node, but queries, MLP and all later operations
only for the nodes that are read: `PackedPasses.narrowed` runs it for those nodes alone.

    with apply(model, []) as applied, packed_passes(model, tokens, applied) as passes:
        for rows in passes.batches:
            packed = passes.pack(rows)
            with passes.whole(packed):
                model.decoder(**packed.inputs)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.engine.applying import Applied
from interp.engine.batching import (
    Enough,
    SharedPrefix,
    outgrows_window,
    resuming_at,
    rotate_alike,
    shared_length,
)
from interp.engine.budgets import PassBudget
from interp.engine.cpu_kernels import fused_forwards
from interp.engine.layouts import PassLayout
from interp.engine.prefix_trees import Tree, pack, plan_trees
from interp.engine.prepacked_weights import PackedWeights
from interp.engine.unfolded_attention import (
    PackedAttention,
    attention_modules,
    in_place_of,
    unfold_all,
    unfold_few,
)
from interp.models.chat_model import ChatModel, Edit, Site
from interp.models.tokens import ChatTokens

_LONGEST_ROOT = 1 / 8
"""Length of a shared prefix that runs within a pass at most, as a share of the pass's budget."""


class Packed(NamedTuple):
    """The inputs of one packed pass."""

    tree: Tree
    batch: ChatTokens
    """Prompts of the pass."""
    inputs: dict[str, Any]
    """Keyword arguments for `model.hf` or `model.decoder`."""

    def nodes(self, where: Int[Tensor, "prompt role"]) -> Int[Tensor, "prompt role"]:
        """Nodes of the tokens at these columns, which count from the end of the shared prefix."""
        return self.tree.grid.gather(1, where)

    @property
    def last(self) -> Int[Tensor, " prompt"]:
        """Node of each prompt's last token."""
        return self.nodes(torch.tensor(self.tree.lengths)[:, None] - 1)[:, 0]


class PackedPasses:
    """Passes over packed batches after their shared prefix; made by `packed_passes`."""

    def __init__(
        self,
        model: ChatModel,
        tokens: ChatTokens,
        applied: Applied,
        prefix: SharedPrefix,
        attention: PackedAttention,
        budget: PassBudget,
        batches: Sequence[list[int]],
    ) -> None:
        self.shared, self.max_rows = prefix.length, budget.rows
        self._model, self._tokens, self._applied, self._prefix = model, tokens, applied, prefix
        self._attention, self._budget = attention, budget
        self._tails = [ids[self.shared :] for ids in tokens.ids]
        self.batches = batches

    def pack(self, rows: list[int]) -> Packed:
        """Pack these prompts into the inputs of one pass."""
        batch, device = self._tokens.take(rows), self._model.device
        marks = self._applied.marks(batch)
        tree = pack(
            [self._tails[row] for row in rows], None if marks is None else [m[self.shared :] for m in marks]
        )
        inputs = {
            "input_ids": tree.ids[None].to(device),
            "position_ids": (tree.depths[None] + self.shared).to(device),
            "attention_mask": self._no_mask,
            "past_key_values": self._prefix.cache(1),
            "use_cache": True,
        }
        return Packed(tree, batch, inputs)

    @property
    def _no_mask(self) -> Float[Tensor, "one one one one"]:
        """A four-axis mask of zeros: transformers uses it as it is and builds none, as packed attention needs none."""
        return torch.zeros(1, 1, 1, 1, dtype=self._model.dtype, device=self._model.device)

    @contextmanager
    def whole(self, packed: Packed) -> Iterator[None]:
        """Passes inside the context run all nodes."""
        unfolding = unfold_all(packed.tree, shared=self.shared, dtype=self._model.dtype, budget=self._budget)
        everything = torch.arange(len(packed.tree.ids))
        with (
            self._applied.running(self._layout(packed, everything)),
            self._attention.by(unfolding.to(self._model.device)),
        ):
            yield

    @contextmanager
    def narrowed(
        self,
        packed: Packed,
        nodes: Int[Tensor, "prompt role"],
        block: int,
        *,
        edits: Sequence[tuple[Site, int, Edit]] = (),
        resume: tuple[int, Float[Tensor, "one node d_model"]] | None = None,
    ) -> Iterator[tuple[dict[str, Any], Int[Tensor, "prompt role"]]]:
        """Run all nodes up to the keys and values of this block; passes inside the context run it for a few nodes only.

        Args:
            nodes: nodes to read of each prompt.
            block: the last block that passes reach.
            edits: hooks of the pass over all nodes, as `ChatModel.hooks` takes them.
            resume: start that pass at this block from this `resid_pre`.

        Yields:
            Inputs of `model.hf` or `model.decoder`, and the index of each requested node in that pass.
        """
        model, entering = self._model, list[Tensor]()
        reads: list[tuple[Site, int, Edit]] = [*edits, ("resid_pre", block, entering.append)]
        begin = nullcontext() if resume is None else resuming_at(model, *resume)
        with (
            self.whole(packed),
            self._attention.ending_in(model.blocks[block].attention) as past,
            begin,
            model.hooks(reads),
            suppress(Enough),
        ):
            model.decoder(**packed.inputs)
        few, where = nodes.unique(return_inverse=True)
        columns = few.to(model.device)
        unfolding = unfold_few(packed.tree, nodes, where, shared=self.shared, dtype=model.dtype)
        inputs = {name: packed.inputs[name][:, columns] for name in ("input_ids", "position_ids")}
        inputs |= {"attention_mask": self._no_mask, "use_cache": False}
        with (
            self._applied.running(self._layout(packed, few)),
            self._attention.by(unfolding.to(model.device), past=past[0]),
            resuming_at(model, block, entering[0][:, columns]),
        ):
            yield inputs, where

    def next_token_logits(
        self, packed: Packed, *, resume: tuple[int, Float[Tensor, "one node d_model"]] | None = None
    ) -> Float[Tensor, "prompt d_vocab"]:
        """Run the pass and return the logits of each prompt's first completion token.

        Args:
            resume: start at this block from this `resid_pre`.
        """
        last = self._model.n_layers - 1
        with self.narrowed(packed, packed.last[:, None], last, resume=resume) as (inputs, where):
            return self._model.hf(**inputs).logits[0, where[:, 0]]

    def final_states(self, packed: Packed) -> Float[Tensor, "prompt d_model"]:
        """Run the pass and return the state of each prompt's last token after the final norm."""
        last = self._model.n_layers - 1
        with self.narrowed(packed, packed.last[:, None], last) as (inputs, where):
            output: Any = self._model.decoder(**inputs)
        return output.last_hidden_state[0, where[:, 0]]

    def _layout(self, packed: Packed, nodes: Int[Tensor, " node"]) -> PassLayout | None:
        if not self._applied.tracks:
            return None
        prompts, positions = packed.tree.prompts[nodes], packed.tree.depths[nodes] + self.shared
        return PassLayout(tokens=packed.batch, prompts=prompts[None], positions=positions[None])


def can_pack(model: ChatModel, tokens: ChatTokens) -> bool:
    """Whether attention can be unfolded (it is sdpa or eager), no prompt outgrows a window, and all rotate alike."""
    return (
        model.hf.config._attn_implementation in ("sdpa", "eager")
        and model.hf._can_set_attn_implementation()
        and all(attention_modules(block) for block in model.blocks)
        and not outgrows_window(model, tokens)
        and rotate_alike(model, tokens)
    )


@contextmanager
def packed_passes(
    model: ChatModel,
    tokens: ChatTokens,
    applied: Applied,
    *,
    max_shared: int | None = None,
    stop_before: int | None = None,
    budget: int | None = None,
    weights: PackedWeights | None = None,
    batches: Sequence[list[int]] | None = None,
) -> Iterator[PackedPasses]:
    """Inside the context, this thread's passes of `model.hf` run packed prompts: `.batches`, then `.pack` for each.

    Args:
        applied: active interventions; tokens that they treat differently are not packed together.
        max_shared: maximum length of the shared prefix; tokens inside it cannot be read per prompt.
        stop_before: passes will not reach this block.
        budget: maximum nodes of one pass.
        weights: the model's prepacked weights; when None, large passes pack layer by layer.
        batches: rows of each pass, as another process planned them; planned here when None.
    """
    weights = weights or PackedWeights(model, keep=False)
    limits = PassBudget.for_(model)
    shared = shared_length(model, tokens, applied)
    if max_shared is not None:
        shared = min(shared, max_shared)
    nodes = budget or limits.packed_tokens
    if batches is None:
        tails = [ids[shared:] for ids in tokens.ids]
        batches = plan_trees(tails, budget=nodes, unfolded=limits.unfolded_tokens)
    if len(batches) == 1 and len(batches[0]) == len(tokens) and shared <= nodes * _LONGEST_ROOT:
        shared = 0  # in the one pass that there is, the prefix stands once anyway
    attention = PackedAttention(str(model.hf.config._attn_implementation), limits)
    longest = max(len(ids) for ids in tokens.ids)
    with model.lock, fused_forwards(model, weights), model.rotary.at([longest]):
        prefix = SharedPrefix(model, tokens, applied, shared, stop_before=stop_before)
        passes = PackedPasses(model, tokens, applied, prefix, attention, limits, batches)
        with in_place_of(model, attention):
            yield passes
