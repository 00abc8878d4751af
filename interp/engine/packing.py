"""Prompts packed as one sequence in which every common beginning stands once: a forest of prefix trees.

Prompts of one template share their first tokens, and prompts of one set share more: "How do I", "Write a". A token's
activations depend on the tokens before it alone, so one copy serves every prompt that begins alike. The packed
sequence holds each distinct prefix once (a node), without padding; everything but attention treats tokens one by one
and runs on it as it is. Attention unfolds the nodes into one row per prompt, attends there, and folds the rows back.

The last block that a pass reaches needs keys and values of every node, but queries, MLP and all that follows only of
the nodes that are read: `PackedPasses.narrowed` runs it for those alone.

    tree = pack([[5, 6, 7], [5, 6, 8, 9]])
    tree.ids                # [5, 6, 7, 8, 9]
    tree.grid               # [[0, 1, 2, 0], [0, 1, 3, 4]]  node of each token of each prompt, padded with 0
"""

import math
import sys
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import pairwise
from os.path import commonprefix
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interp.engine.batching import (
    TOKEN_BUDGET,
    Enough,
    SharedPrefix,
    outgrows_window,
    plan_batches,
    resuming_at,
    shared_length,
)
from interp.engine.cpu_kernels import PackedWeights, lean_forwards
from interp.engine.interventions import Applied
from interp.models.chat_model import ChatModel, Edit, Site
from interp.models.tokens import ChatTokens

_NAME = "interp_tree"
_KNOWN_OPTIONS = {"dropout", "scaling", "is_causal", "sliding_window", "position_ids", "use_cache"}
"""Options of an attention call that the masks here account for; with any other the model's own attention is called."""
_SHORT, _FEW_SCORES = 2**15, 2**22
"""Scores of a row, and of all rows, up to which two products and a softmax beat the kernel that never holds the scores:
on two AMD cores by 2.3 for prompts of 20 tokens; at 300 tokens by nothing."""
_UNFOLDED = 16
"""Attention unfolds a pass to at most so many times its budget, of a large pass twice the usual one: prompts may
share a long beginning."""


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

    @property
    def n_common(self) -> int:
        """Nodes that all of several prompts begin with; less than any prompt."""
        if len(self.lengths) == 1:
            return 0
        alike = (self.grid == self.grid[0]).all(0)[: min(self.lengths) - 1]
        return int(alike.long().cumprod(0).sum())


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
        if full or (len(batches[-1]) + 1) * width > _UNFOLDED * min(budget, 2 * TOKEN_BUDGET):
            batches.append([])
            held, n, width = 0, 0, length
        batches[-1].append(row)
        held += length - n
    return batches


class _Group(NamedTuple):
    """Prompts that attend together, padded on the right to one width."""

    queries: Int[Tensor, "prompt pos"]
    """Where each query stands among the nodes that the pass runs."""
    keys: Int[Tensor, "prompt past"]
    """Where each key stands: the shared prefix first, then all nodes."""
    mask: Float[Tensor, "prompt_or_one one pos past"]
    """Added to the scores; its first axis is 1 where all prompts have one mask."""


class _Unfolding(NamedTuple):
    """How the nodes of a pass become rows of prompts, and where each node's result is found in them."""

    groups: list[_Group]
    start: Int[Tensor, " node"]
    """Queries in the groups before the node's own."""
    row: Int[Tensor, " node"]
    """Its prompt, counted in its group."""
    column: Int[Tensor, " node"]
    width: Int[Tensor, " node"]
    """Queries of a prompt in its group."""

    def home(self, heads: int) -> Int[Tensor, " node_and_head"]:
        """Rows of each node's heads in the groups' results [prompt, head, pos, ...], flattened and put end to end."""
        first = self.start * heads + self.row * heads * self.width + self.column
        return (first[:, None] + torch.arange(heads, device=first.device) * self.width[:, None]).flatten()


class Packed(NamedTuple):
    """What one pass runs."""

    tree: Tree
    batch: ChatTokens
    """Its prompts."""
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
        self._stop_in: set[int] = set()
        self._past: tuple[Tensor, Tensor] | None = None

    def place(self, rows: list[int]) -> Packed:
        """Get ready to run these prompts."""
        self._past = None  # an earlier pass may have run out of memory half-way
        batch, device = self._tokens.take(rows), self._model.device
        marks = self._applied.marks(batch)
        tree = pack(
            [self._tails[row] for row in rows], None if marks is None else [m[self.shared :] for m in marks]
        )
        self._applied.place(batch, shared=self.shared, nodes=(tree.prompts, tree.depths))
        self._unfold_by(self._all_queries(tree))
        inputs = {
            "input_ids": tree.ids[None].to(device),
            "position_ids": (tree.depths[None] + self.shared).to(device),
            "past_key_values": self._prefix.cache(1),
            "use_cache": True,
        }
        return Packed(tree, batch, inputs)

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
        """Run all nodes up to the keys and values of this block; inside the context, passes run it for a few alone.

        Args:
            nodes: what is wanted of each prompt.
            block: the last block that passes reach.
            edits: hooks of the pass over all nodes, as `ChatModel.hooks` takes them.
            resume: start that pass at this block from this `resid_pre`.

        Yields:
            Inputs of `model.hf` or `model.decoder`, and where in that pass each wanted node stands.
        """
        model, entering = self._model, list[Tensor]()
        self._stop_in = {id(module) for module in model.blocks[block].attention.modules()}
        reads: list[tuple[Site, int, Edit]] = [*edits, ("resid_pre", block, entering.append)]
        begin = nullcontext() if resume is None else resuming_at(model, *resume)
        try:
            with begin, model.hooks(reads), suppress(Enough):
                model.decoder(**packed.inputs)
        finally:
            self._stop_in = set()
        few, where = nodes.unique(return_inverse=True)
        tree, columns = packed.tree, few.to(model.device)
        self._applied.place(packed.batch, shared=self.shared, nodes=(tree.prompts[few], tree.depths[few]))
        self._unfold_by(self._few_queries(tree, nodes, where))
        inputs = {name: packed.inputs[name][:, columns] for name in ("input_ids", "position_ids")}
        try:
            with resuming_at(model, block, entering[0][:, columns]):
                yield {**inputs, "use_cache": False}, where
        finally:
            self._past = None

    def next_token_logits(
        self, packed: Packed, *, resume: tuple[int, Float[Tensor, "one node d_model"]] | None = None
    ) -> Float[Tensor, "prompt d_vocab"]:
        """Run the pass; logits of each prompt's first completion token.

        Args:
            resume: start at this block from this `resid_pre`.
        """
        last = self._model.n_layers - 1
        with self.narrowed(packed, packed.last[:, None], last, resume=resume) as (inputs, where):
            return self._model.hf(**inputs).logits[0, where[:, 0]]

    def _all_queries(self, tree: Tree) -> _Unfolding:
        """Every node asks; prompts of similar length attend together, and what all begin with asks once."""
        common = tree.n_common
        groups = [self._group(tree.grid[:1, :common], tree.grid[:1, :common], torch.arange(common)[None])]
        asked = common
        start, row, width = (torch.empty(len(tree.lengths), dtype=torch.long) for _ in range(3))
        for prompts in plan_batches([n - common for n in tree.lengths], budget=sys.maxsize):
            longest = max(tree.lengths[prompt] for prompt in prompts)
            nodes, depths = tree.grid[prompts, :longest], torch.arange(common, longest)[None]
            groups.append(self._group(nodes[:, common:], nodes, depths))
            start[prompts], row[prompts], width[prompts] = asked, torch.arange(len(prompts)), longest - common
            asked += len(prompts) * (longest - common)
        held, own = tree.prompts, tree.depths >= common
        places = (start[held] * own, row[held] * own, tree.depths - common * own)
        return _Unfolding(groups if common else groups[1:], *places, torch.where(own, width[held], common))

    def _few_queries(
        self, tree: Tree, nodes: Int[Tensor, "prompt role"], where: Int[Tensor, "prompt role"]
    ) -> _Unfolding:
        """Only these nodes ask: `where` counts them among themselves."""
        group = self._group(where, tree.grid, tree.depths[nodes])
        asking = torch.empty(int(where.max()) + 1, dtype=torch.long)
        asking[where.flatten()] = torch.arange(where.numel())  # any of the prompts that hold a node
        width = torch.full_like(asking, where.shape[1])
        return _Unfolding([group], torch.zeros_like(asking), asking // width, asking % width, width)

    def _group(
        self,
        queries: Int[Tensor, "prompt pos"],
        nodes: Int[Tensor, "prompt width"],
        depths: Int[Tensor, "prompt_or_one pos"],
    ) -> _Group:
        prefix = torch.arange(self.shared).expand(len(nodes), -1)
        hidden = torch.arange(self.shared + nodes.shape[1]) > depths[..., None] + self.shared
        mask = hidden.to(self._model.dtype)[:, None] * torch.finfo(self._model.dtype).min
        device = self._model.device
        keys = torch.cat([prefix, nodes + self.shared], dim=1)
        return _Group(queries.to(device), keys.to(device), mask.to(device))

    def _unfold_by(self, unfolding: _Unfolding) -> None:
        groups, *places = unfolding
        self._unfolding = _Unfolding(groups, *(place.to(self._model.device) for place in places))
        self._home = self._unfolding.home(1)
        self._by_head: dict[int, _ByHead] = {}

    def attend(
        self,
        module: Any,
        query: Float[Tensor, "one head node d_head"],
        key: Float[Tensor, "one key_head past d_head"],
        value: Float[Tensor, "one key_head past d_head"],
        attention_mask: Tensor | None,  # noqa: ARG002 (the interface passes it)
        **options: Any,
    ) -> tuple[Float[Tensor, "one node head d_head"], None]:
        """Unfold to one row per prompt, attend, fold back. transformers calls this."""
        if id(module) in self._stop_in:
            self._past = key, value
            raise Enough
        if self._past is not None:  # the few that ask are among them
            key, value = self._past
        given = {name for name, option in options.items() if option is not None}
        if self._implementation == "sdpa" and given <= _KNOWN_OPTIONS and not options.get("dropout"):
            return self._attend_by_key_head(query, key, value, options.get("scaling")), None
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
            for group in self._unfolding.groups
        ]
        return _put_together(found, self._home)[None], None

    def _attend_by_key_head(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Float[Tensor, "one node head d_head"]:
        """Attention with one row per prompt and key head, so that no key is copied for the queries that share it."""
        _, n_keys, _, width = value.shape
        if n_keys not in self._by_head:
            self._by_head[n_keys] = _by_key_head(self._unfolding, n_keys, query.shape[1] // n_keys)
        by_head = self._by_head[n_keys]
        # The heads that share a key stand side by side in a token's row.
        asked = rearrange(query, "1 (k q) node d -> (node k) (q d)", k=n_keys)
        keys, values = (rearrange(x, "1 k past d -> (past k) d") for x in (key, value))
        found = []
        for queries, past, mask in by_head.groups:
            rows, columns = past.shape
            attended = _attention(
                asked.index_select(0, queries).view(rows, -1, query.shape[-1]),
                keys.index_select(0, past.flatten()).view(rows, columns, -1),
                values.index_select(0, past.flatten()).view(rows, columns, -1),
                mask,
                scaling,
            )
            found.append(attended.reshape(len(queries), -1))
        return _put_together(found, by_head.home).view(1, query.shape[2], -1, width)


def _attention(
    query: Float[Tensor, "row query d_head"],
    key: Float[Tensor, "row past d_head"],
    value: Float[Tensor, "row past d_head"],
    mask: Float[Tensor, "row_or_one one query past"],
    scaling: float | None,
) -> Float[Tensor, "row query d_head"]:
    """Scaled dot-product attention."""
    each = query.shape[1] * key.shape[1]
    if query.device.type == "cpu" and each <= _SHORT and len(query) * each <= _FEW_SCORES:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return torch.baddbmm(mask[:, 0], query, key.mT, alpha=scale).softmax(-1) @ value
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(query[:, None], key[:, None], value[:, None], attn_mask=mask, scale=scaling)[:, 0]


class _ByHead(NamedTuple):
    """An unfolding to one row per prompt and key head."""

    groups: list[tuple[Int[Tensor, " query"], Int[Tensor, "row past"], Float[Tensor, "row one query past"]]]
    """By group: rows of the table of queries, rows of the table of keys, mask."""
    home: Int[Tensor, " node_and_head"]
    """Of each node's key heads, where its result stands in what the groups give."""


def _by_key_head(unfolding: _Unfolding, heads: int, sharing: int) -> _ByHead:
    """Unfold further, to so many key heads, each shared by so many query heads."""
    groups = []
    for group in unfolding.groups:
        mask = group.mask.repeat_interleave(sharing, dim=2)
        if len(mask) > 1:
            mask = mask.repeat_interleave(heads, dim=0)
        groups.append((_rows(group.queries, heads).flatten(), _rows(group.keys, heads), mask))
    return _ByHead(groups, unfolding.home(heads))


def _rows(index: Int[Tensor, "prompt pos"], heads: int) -> Int[Tensor, "row pos"]:
    """Of every head, where all heads of a node stand one after the other."""
    return (index[:, None] * heads + torch.arange(heads, device=index.device)[:, None]).flatten(0, 1)


def _put_together(found: list[Tensor], home: Int[Tensor, " row"]) -> Tensor:
    return (found[0] if len(found) == 1 else torch.cat(found)).index_select(0, home)


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
    weights: PackedWeights | None = None,
) -> Iterator[PackedPasses]:
    """Inside the context, `model.hf` runs packed prompts: plan with `.batches`, then `.place(rows)` before each pass.

    Args:
        applied: interventions in force; tokens that they treat differently are not packed together.
        most_shared: longest prefix to run once for all; tokens inside it cannot be read per prompt.
        stop_before: passes will not reach this block.
        budget: nodes of one pass.
        weights: the model's, packed; when None, large passes pack as they go.
    """
    weights = weights or PackedWeights(model, keep=False)
    shared = shared_length(model, tokens, applied)
    if most_shared is not None:
        shared = min(shared, most_shared)
    nodes = max(TOKEN_BUDGET, weights.pass_nodes if weights.usable else 0)
    with model.lock, lean_forwards(model, weights):
        prefix = SharedPrefix(model, tokens, applied, shared, stop_before=stop_before)
        passes = PackedPasses(model, tokens, applied, prefix, budget or nodes)
        before = str(model.hf.config._attn_implementation)
        assert before != _NAME, "packed passes do not nest"
        ALL_ATTENTION_FUNCTIONS[_NAME] = passes.attend
        try:
            model.hf.set_attn_implementation(_NAME)
            yield passes
        finally:
            model.hf.set_attn_implementation(before)
            del ALL_ATTENTION_FUNCTIONS[_NAME]
