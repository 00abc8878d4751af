"""Attention over packed batches: nodes are unfolded into one row per prompt, attend there, and are folded back.

`Unfolding` says which nodes form which rows; `PackedAttention` uses it in place of a model's own attention, for the
attention modules of one model and in one thread. transformers looks an attention function up by a name in the module's
configuration: `in_place_of` gives the modules a copy of their configuration with one name for all packed passes, and
the function registered under that name looks up which pass is active for this module in this thread. Where none is,
in another thread for instance, it calls the model's own attention with the model's own mask.
"""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interp.engine.batching import Enough, plan_batches
from interp.engine.budgets import PassBudget
from interp.engine.prefix_trees import Tree
from interp.models.architecture import Block
from interp.models.chat_model import ChatModel
from interp.models.threads import this_thread

_NAME = "interp_packed"
_KNOWN_OPTIONS = {"dropout", "scaling", "is_causal", "sliding_window", "position_ids", "use_cache"}
"""Options of an attention call that the masks here account for; any other option falls back to the model's own
attention."""


class Group(NamedTuple):
    """Prompts that attend together, padded on the right to one width."""

    queries: Int[Tensor, "prompt pos"]
    """Index of each query among the nodes that the pass runs."""
    keys: Int[Tensor, "prompt past"]
    """Index of each key: the shared prefix first, then all nodes."""
    mask: Float[Tensor, "prompt_or_one one pos past"]
    """Added to the attention scores; the first axis has length 1 where all prompts share one mask."""


class Unfolding(NamedTuple):
    """How the nodes of a pass become rows of prompts, and where in those rows each node's result is."""

    groups: list[Group]
    start: Int[Tensor, " node"]
    """Number of queries in the groups before the node's own group."""
    row: Int[Tensor, " node"]
    """Index of the node's prompt within its group."""
    column: Int[Tensor, " node"]
    width: Int[Tensor, " node"]
    """Number of queries per prompt in the node's group."""

    def home(self, heads: int) -> Int[Tensor, " node_and_head"]:
        """Row of each node's heads in the concatenated, flattened results [prompt, head, pos, ...] of the groups."""
        first = self.start * heads + self.row * heads * self.width + self.column
        return (first[:, None] + torch.arange(heads, device=first.device) * self.width[:, None]).flatten()

    def to(self, device: torch.device) -> "Unfolding":
        """The same unfolding on another device."""
        groups, *places = self
        moved = [Group(*(tensor.to(device) for tensor in group)) for group in groups]
        return Unfolding(moved, *(place.to(device) for place in places))


def unfold_all(tree: Tree, *, shared: int, dtype: torch.dtype, budget: PassBudget) -> Unfolding:
    """An unfolding with every node as a query: prompts of similar length attend together, what they share mostly once.

    Args:
        shared: tokens of the prefix before the tree.
        dtype: dtype of the masks.
    """
    common = tree.n_common
    first = torch.arange(common)[None]
    groups = [_group(tree.grid[:1, :common], tree.grid[:1, :common], first, shared, dtype)]
    asked = common
    begin = _first_queries(tree, common, overhead=budget.overhead_tokens)
    start, row, width = (torch.empty(len(tree.lengths), dtype=torch.long) for _ in range(3))
    for column in begin.unique().tolist():
        members = (begin == column).nonzero()[:, 0].tolist()
        for part in plan_batches(
            [tree.lengths[prompt] - column for prompt in members],
            budget=sys.maxsize,
            max_rows=budget.rows,
            overhead=budget.overhead_tokens,
        ):
            prompts = [members[i] for i in part]
            longest = max(tree.lengths[prompt] for prompt in prompts)
            nodes, depths = tree.grid[prompts, :longest], torch.arange(column, longest)[None]
            groups.append(_group(nodes[:, column:], nodes, depths, shared, dtype))
            start[prompts], row[prompts], width[prompts] = asked, torch.arange(len(prompts)), longest - column
            asked += len(prompts) * (longest - column)
    held, own = tree.prompts, tree.depths >= common
    places = (start[held] * own, row[held] * own, tree.depths - begin[held] * own)
    return Unfolding(groups if common else groups[1:], *places, torch.where(own, width[held], common))


_STEP = 16
"""Columns to which the first queries of prompts are rounded down, so that many prompts attend together."""


def _first_queries(tree: Tree, common: int, *, overhead: int) -> Int[Tensor, " prompt"]:
    """The column from which each prompt attends: an earlier prompt attends for the nodes before it.

    A prompt's own nodes are its last ones, since what follows a node of its own is its own as well.

    Args:
        common: length of the common prefix.
        overhead: queries that a further group costs; prompts that save fewer attend from the common prefix on.
    """
    lengths = torch.tensor(tree.lengths)
    columns = torch.arange(tree.grid.shape[1])
    own = (tree.prompts[tree.grid] == torch.arange(len(lengths))[:, None]) & (columns < lengths[:, None])
    first = torch.where(own.any(1), own.long().argmax(1), lengths - 1).clamp(
        min=common
    )  # the last: another's twin
    begin = common + (first - common) // _STEP * _STEP
    for column, count in zip(*(values.tolist() for values in begin.unique(return_counts=True)), strict=True):
        if count * (column - common) <= overhead:
            begin[begin == column] = common
    return begin


def unfold_few(
    tree: Tree,
    nodes: Int[Tensor, "prompt role"],
    where: Int[Tensor, "prompt role"],
    *,
    shared: int,
    dtype: torch.dtype,
) -> Unfolding:
    """An unfolding with only these nodes as queries; `where` is the index of each among the distinct ones."""
    group = _group(where, tree.grid, tree.depths[nodes], shared, dtype)
    asking = torch.empty(int(where.max()) + 1, dtype=torch.long)
    asking[where.flatten()] = torch.arange(where.numel())  # any of the prompts that hold a node
    width = torch.full_like(asking, where.shape[1])
    return Unfolding([group], torch.zeros_like(asking), asking // width, asking % width, width)


def _group(
    queries: Int[Tensor, "prompt pos"],
    nodes: Int[Tensor, "prompt width"],
    depths: Int[Tensor, "prompt_or_one pos"],
    shared: int,
    dtype: torch.dtype,
) -> Group:
    prefix = torch.arange(shared).expand(len(nodes), -1)
    hidden = torch.arange(shared + nodes.shape[1]) > depths[..., None] + shared
    mask = hidden.to(dtype)[:, None] * torch.finfo(dtype).min
    return Group(queries, torch.cat([prefix, nodes + shared], dim=1), mask)


class PackedAttention:
    """The attention of consecutive passes over packed batches.

    Args:
        implementation: name of the model's own attention.
        budget: decides between attention kernels.
    """

    def __init__(self, implementation: str, budget: PassBudget) -> None:
        self._implementation, self._budget = implementation, budget
        self._run: _Run | None = None
        self._last: tuple[set[int], list[tuple[Tensor, Tensor]]] = (set(), [])

    @contextmanager
    def by(self, unfolding: Unfolding, *, past: tuple[Tensor, Tensor] | None = None) -> Iterator[None]:
        """Passes inside the context use this unfolding.

        Args:
            past: keys and values of all nodes, where the pass runs only some of them.
        """
        before, self._run = self._run, _Run(unfolding, past, unfolding.home(1), {})
        try:
            yield
        finally:
            self._run = before

    @contextmanager
    def ending_in(self, attention: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Passes inside the context stop at this attention module, whose keys and values are appended to the list."""
        before, self._last = self._last, ({id(module) for module in attention.modules()}, [])
        try:
            yield self._last[1]
        finally:
            self._last = before

    def __call__(
        self,
        module: Any,
        query: Float[Tensor, "one head node d_head"],
        key: Float[Tensor, "one key_head past d_head"],
        value: Float[Tensor, "one key_head past d_head"],
        **options: Any,
    ) -> tuple[Float[Tensor, "one node head d_head"], None]:
        """Unfold to one row per prompt, attend, and fold back."""
        last, kept = self._last
        if id(module) in last:
            kept.append((key, value))
            raise Enough
        run = self._run
        assert run is not None, "a packed pass says how it unfolds"
        if run.past is not None:  # includes the nodes that are queries here
            key, value = run.past
        given = {name for name, option in options.items() if option is not None}
        if self._implementation == "sdpa" and given <= _KNOWN_OPTIONS and not options.get("dropout"):
            return self._attend_by_key_head(run, query, key, value, options.get("scaling")), None
        inner = _own_attention(module, self._implementation)
        attended = [
            inner(
                module,
                _unfold(query, group.queries),
                _unfold(key, group.keys),
                _unfold(value, group.keys),
                group.mask,
                **options,
            )[0].flatten(0, 1)
            for group in run.unfolding.groups
        ]
        return _put_together(attended, run.home)[None], None

    def _attend_by_key_head(
        self, run: "_Run", query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Float[Tensor, "one node head d_head"]:
        """Attention with one row per prompt and key head, so that no key is copied for the queries that share it."""
        _, n_keys, _, width = value.shape
        if n_keys not in run.by_head:
            run.by_head[n_keys] = _by_key_head(run.unfolding, n_keys, query.shape[1] // n_keys)
        by_head = run.by_head[n_keys]
        # Query heads that share a key head are adjacent in a token's row.
        asked = rearrange(query, "1 (k q) node d -> (node k) (q d)", k=n_keys)
        keys, values = (rearrange(x, "1 k past d -> (past k) d") for x in (key, value))
        attended = []
        for queries, past, mask in by_head.groups:
            rows, columns = past.shape
            result = _attention(
                asked.index_select(0, queries).view(rows, -1, query.shape[-1]),
                keys.index_select(0, past.flatten()).view(rows, columns, -1),
                values.index_select(0, past.flatten()).view(rows, columns, -1),
                mask,
                scaling,
                self._budget,
            )
            attended.append(result.reshape(len(queries), -1))
        return _put_together(attended, by_head.home).view(1, query.shape[2], -1, width)


def _attention(
    query: Float[Tensor, "row query d_head"],
    key: Float[Tensor, "row past d_head"],
    value: Float[Tensor, "row past d_head"],
    mask: Float[Tensor, "row_or_one one query past"],
    scaling: float | None,
    budget: PassBudget,
) -> Float[Tensor, "row query d_head"]:
    """Scaled dot-product attention."""
    each = query.shape[1] * key.shape[1]
    if each <= budget.short_scores and len(query) * each <= budget.few_scores:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = torch.baddbmm(mask[:, 0], query, key.mT, alpha=scale)
        # In half precision a softmax in float32 rounds less, as the fused kernel does, and is faster.
        return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(query[:, None], key[:, None], value[:, None], attn_mask=mask, scale=scaling)[:, 0]


class _ByHead(NamedTuple):
    """An unfolding to one row per prompt and key head."""

    groups: list[tuple[Int[Tensor, " query"], Int[Tensor, "row past"], Float[Tensor, "row one query past"]]]
    """For each group: rows of the query table, rows of the key table, and the mask."""
    home: Int[Tensor, " node_and_head"]
    """Row of each node's key heads in the concatenated results of the groups."""


class _Run(NamedTuple):
    """Values of one unfolding that every block of a pass reuses."""

    unfolding: Unfolding
    past: tuple[Tensor, Tensor] | None
    home: Int[Tensor, " node"]
    by_head: dict[int, _ByHead]
    """Cache by number of key heads, filled on first use."""


def _by_key_head(unfolding: Unfolding, heads: int, sharing: int) -> _ByHead:
    """Unfold further into `heads` key heads, each shared by `sharing` query heads."""
    groups = []
    for group in unfolding.groups:
        mask = group.mask.repeat_interleave(sharing, dim=2)
        if len(mask) > 1:
            mask = mask.repeat_interleave(heads, dim=0)
        groups.append((_rows(group.queries, heads).flatten(), _rows(group.keys, heads), mask))
    return _ByHead(groups, unfolding.home(heads))


def _rows(index: Int[Tensor, "prompt pos"], heads: int) -> Int[Tensor, "row pos"]:
    """Row of every head in a table in which the heads of a node are adjacent."""
    return (index[:, None] * heads + torch.arange(heads, device=index.device)[:, None]).flatten(0, 1)


def _put_together(attended: list[Tensor], home: Int[Tensor, " row"]) -> Tensor:
    return (attended[0] if len(attended) == 1 else torch.cat(attended)).index_select(0, home)


def _unfold(x: Tensor, index: Int[Tensor, "prompt pos"]) -> Tensor:
    """[1, head, node, d_head] → [prompt, head, pos, d_head]."""
    return x[0].transpose(0, 1)[index].transpose(1, 2)


_in_force: dict[tuple[int, int], PackedAttention] = {}
"""The active packed attention, by thread id and id of the attention module."""
_own: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Name of the original attention function of each module that ever ran a packed batch."""


def attention_modules(block: Block) -> list[Any]:
    """Modules of a block that look up their attention function in a configuration."""
    modules = block.attention.modules()
    return [m for m in modules if hasattr(getattr(m, "config", None), "_attn_implementation")]


@contextmanager
def in_place_of(model: ChatModel, attention: PackedAttention) -> Iterator[None]:
    """Inside the context, this thread's passes of the model use `attention`. The caller holds `model.lock`."""
    modules = [module for block in model.blocks for module in attention_modules(block)]
    keys = [(this_thread(), id(module)) for module in modules]
    assert not any(key in _in_force for key in keys), "packed passes do not nest"
    before = [(module, module.config) for module in modules]
    named = {id(config): _named(config) for _, config in before}
    try:
        for module, config in before:
            _own[module] = config._attn_implementation
        _in_force.update(dict.fromkeys(keys, attention))
        for module, config in before:
            module.config = named[id(config)]
        yield
    finally:
        for module, config in before:
            module.config = config
        for key in keys:
            _in_force.pop(key, None)


def _named(config: Any) -> Any:
    """A shallow copy of a configuration that names the packed attention; nested objects are shared, not changed."""
    config = copy.copy(config)
    config._attn_implementation_internal = _NAME
    return config


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """The function that transformers calls: the packed attention that is active for this module in this thread, or
    the model's own."""
    packed = _in_force.get((this_thread(), id(module)))
    if packed is not None:
        return packed(module, query, key, value, **options)
    return _own_attention(module, _own[module])(module, query, key, value, attention_mask, **options)


def _own_attention(module: Any, implementation: str) -> Any:
    inner = ALL_ATTENTION_FUNCTIONS.get(implementation)
    # Eager attention is a function of the architecture's own source file.
    return inner or sys.modules[type(module).__module__].eager_attention_forward


ALL_ATTENTION_FUNCTIONS.register(_NAME, _attend)
