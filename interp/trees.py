"""Prompts packed as one sequence in which every common beginning stands once: a forest of prefix trees.

Prompts of one template share their first tokens, and prompts of one set share more: "How do I", "Write a". A token's
activations depend on the tokens before it alone, so one copy serves every prompt that begins alike. The packed
sequence holds each distinct prefix once (a node), without padding; everything but attention treats tokens one by one
and runs on it as it is. Attention unfolds the nodes into one row per prompt, calls the model's own attention there, and
folds the rows back.

    tree = pack([[5, 6, 7], [5, 6, 8, 9]])
    tree.ids                # [5, 6, 7, 8, 9]
    tree.grid               # [[0, 1, 2, 0], [0, 1, 3, 4]]  node of each token of each prompt, padded with 0
"""

import math
import sys
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from os.path import commonprefix
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interp.batching import TOKEN_BUDGET, SharedPrefix, outgrows_window, plan_batches, shared_length
from interp.chat import ChatTokens
from interp.interventions import Applied
from interp.models import ChatModel

_NAME = "interp_tree"
_UNFOLDED = 16
"""Attention unfolds a pass to at most so many times its budget: prompts may share a long beginning."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Tree:
    """Prompts as nodes; a node is a token together with all that comes before it."""

    ids: Int[Tensor, " node"]
    """Token of each node."""
    depths: Int[Tensor, " node"]
    """Column of each node in `grid`: its position in the prompt, less the shared prefix."""
    grid: Int[Tensor, "prompt pos"]
    """Node of every token of every prompt; 0 beyond a prompt's end."""
    prompts: Int[Tensor, " node"]
    """One prompt that holds each node."""
    lengths: tuple[int, ...]
    """Tokens of each prompt."""


def pack(rows: Sequence[Sequence[int]], marks: Sequence[Sequence[Hashable]] | None = None) -> Tree:
    """Pack token rows into a tree.

    Args:
        marks: one per token; tokens with different marks are not the same node, nor is anything after them.
    """
    known: dict[tuple[int, int, Hashable], int] = {}
    ids, depths, prompts = [], [], []
    grid = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for number, row in enumerate(rows):
        path = [-1]
        for depth, token in enumerate(row):
            key = (path[-1], token, None if marks is None else marks[number][depth])
            node = known.setdefault(key, len(ids))
            if node == len(ids):
                ids.append(token)
                depths.append(depth)
                prompts.append(number)
            path.append(node)
        grid[number, : len(row)] = torch.tensor(path[1:])
    return Tree(
        ids=torch.tensor(ids),
        depths=torch.tensor(depths),
        grid=grid,
        prompts=torch.tensor(prompts),
        lengths=tuple(map(len, rows)),
    )


def plan_trees(rows: Sequence[tuple[int, ...]], *, budget: int) -> list[list[int]]:
    """Rows of each pass: prompts that begin alike together, at most `budget` nodes a pass, evenly filled."""
    order = sorted(range(len(rows)), key=lambda row: rows[row])
    # Item by item, which is what is wanted of token ids.
    common = [0, *(len(commonprefix([rows[a], rows[b]])) for a, b in pairwise(order))]  # noqa: RUF071
    total = sum(len(rows[row]) - n for row, n in zip(order, common, strict=True))
    target = total / math.ceil(total / budget)
    batches: list[list[int]] = []
    held, width = math.inf, 0
    for row, n in zip(order, common, strict=True):
        length = len(rows[row])
        width = max(width, length)
        full = held + (length - n) / 2 > target or held + length - n > budget
        if full or (len(batches[-1]) + 1) * width > _UNFOLDED * budget:
            batches.append([])
            held, n, width = 0, 0, length
        batches[-1].append(row)
        held += length - n
    return batches


class _Group(NamedTuple):
    """Prompts that attend together, padded on the right to one width."""

    queries: Int[Tensor, "prompt pos"]
    keys: Int[Tensor, "prompt past"]
    mask: Float[Tensor, "one one pos past"]


class Packed(NamedTuple):
    """What one pass runs."""

    tree: Tree
    inputs: dict[str, Any]
    """Arguments of `model.hf` or `model.decoder`."""

    def nodes(self, where: Int[Tensor, "prompt role"]) -> Int[Tensor, "prompt role"]:
        """Nodes of the tokens at these columns behind the shared prefix."""
        return self.tree.grid.gather(1, where)

    @property
    def last(self) -> Int[Tensor, " prompt"]:
        """Node of each prompt's last token."""
        return self.nodes(torch.tensor(self.tree.lengths)[:, None] - 1)[:, 0]


class PackedPasses:
    """Passes over packed prompts behind their shared prefix; made by `packed_passes`."""

    def __init__(
        self, model: ChatModel, tokens: ChatTokens, applied: Applied, prefix: SharedPrefix, budget: int
    ) -> None:
        self.shared = prefix.length
        self._model, self._tokens, self._applied, self._prefix = model, tokens, applied, prefix
        self._implementation = model.hf.config._attn_implementation
        self._tails = [ids[self.shared :] for ids in tokens.ids]
        self.batches = plan_trees(self._tails, budget=budget)

    def place(self, rows: list[int]) -> Packed:
        """Get ready to run these prompts."""
        batch, device = self._tokens.take(rows), self._model.device
        marks = self._applied.marks(batch)
        tree = pack(
            [self._tails[row] for row in rows], None if marks is None else [m[self.shared :] for m in marks]
        )
        self._applied.place(batch, shared=self.shared, nodes=(tree.prompts, tree.depths))
        self._groups, self._home = self._unfolding(tree)
        inputs = {
            "input_ids": tree.ids[None].to(device),
            "position_ids": (tree.depths[None] + self.shared).to(device),
            "past_key_values": self._prefix.cache(1),
            "use_cache": True,
        }
        return Packed(tree, inputs)

    def next_token_logits(self, packed: Packed) -> Float[Tensor, "prompt d_vocab"]:
        """Run the pass; logits of each prompt's first completion token."""
        last = packed.last.to(self._model.device)
        return self._model.hf(**packed.inputs, logits_to_keep=last).logits[0]

    def _unfolding(self, tree: Tree) -> tuple[list[_Group], Int[Tensor, " node"]]:
        """Prompts of similar length attend together; where each node's result stands in what they give."""
        device, groups, offset = self._model.device, [], 0
        starts = torch.empty(len(tree.lengths), dtype=torch.long)
        least = torch.finfo(self._model.dtype).min
        for prompts in plan_batches(tree.lengths, budget=sys.maxsize):
            width = max(tree.lengths[prompt] for prompt in prompts)
            queries = tree.grid[prompts, :width]
            prefix = torch.arange(self.shared).expand(len(prompts), -1)
            keys = torch.cat([prefix, queries + self.shared], dim=1)
            hidden = torch.arange(self.shared + width) > torch.arange(width)[:, None] + self.shared
            mask = hidden.to(device, self._model.dtype)[None, None] * least
            groups.append(_Group(queries.to(device), keys.to(device), mask))
            starts[prompts] = offset + torch.arange(len(prompts)) * width
            offset += queries.numel()
        return groups, (starts[tree.prompts] + tree.depths).to(device)

    def attend(
        self,
        module: Any,
        query: Float[Tensor, "one head node d_head"],
        key: Float[Tensor, "one key_head past d_head"],
        value: Float[Tensor, "one key_head past d_head"],
        attention_mask: Tensor | None,  # noqa: ARG002 (the interface passes it)
        **options: Any,
    ) -> tuple[Float[Tensor, "one node head d_head"], None]:
        """Unfold to one row per prompt, call the model's own attention, fold back. transformers calls this."""
        inner = ALL_ATTENTION_FUNCTIONS.get(self._implementation)
        if inner is None:  # eager attention is a function of the family's own file
            inner = sys.modules[type(module).__module__].eager_attention_forward
        found = [
            inner(
                module,
                _unfold(query, group.queries),
                _unfold(key, group.keys),
                _unfold(value, group.keys),
                group.mask,
                **options,
            )[0].flatten(0, 1)
            for group in self._groups
        ]
        return torch.cat(found)[self._home][None], None


def _unfold(x: Tensor, index: Int[Tensor, "prompt pos"]) -> Tensor:
    """[1, head, node, d_head] → [prompt, head, pos, d_head]."""
    return x[0].transpose(0, 1)[index].transpose(1, 2)


def can_pack(model: ChatModel, tokens: ChatTokens) -> bool:
    """Whether attention can be unfolded: sdpa or eager, and every prompt within the sliding window if there is one."""
    return (
        model.hf.config._attn_implementation in ("sdpa", "eager")
        and model.hf._can_set_attn_implementation()
        and not outgrows_window(model, tokens)
    )


@contextmanager
def packed_passes(
    model: ChatModel,
    tokens: ChatTokens,
    applied: Applied,
    *,
    most_shared: int | None = None,
    stop_before: int | None = None,
    budget: int | None = None,
) -> Iterator[PackedPasses]:
    """Inside the context, `model.hf` runs packed prompts: plan with `.batches`, then `.place(rows)` before each pass.

    Args:
        applied: interventions in force; tokens that they treat differently are not packed together.
        most_shared: longest prefix to run once for all; tokens inside it cannot be read per prompt.
        stop_before: passes will not reach this block.
        budget: nodes of one pass.
    """
    shared = shared_length(model, tokens, applied)
    if most_shared is not None:
        shared = min(shared, most_shared)
    prefix = SharedPrefix(model, tokens, applied, shared, stop_before=stop_before)
    passes = PackedPasses(model, tokens, applied, prefix, budget or TOKEN_BUDGET)
    with model.lock:
        before = str(model.hf.config._attn_implementation)
        assert before != _NAME, "packed passes do not nest"
        ALL_ATTENTION_FUNCTIONS[_NAME] = passes.attend
        try:
            model.hf.set_attn_implementation(_NAME)
            yield passes
        finally:
            model.hf.set_attn_implementation(before)
            del ALL_ATTENTION_FUNCTIONS[_NAME]
