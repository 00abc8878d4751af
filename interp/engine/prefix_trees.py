"""Prompts packed as one sequence in which every shared prefix stands once: a forest of prefix trees.

Prompts of one template share their first tokens, and prompts of one set share more: "How do I", "Write a". A token's
activations depend on the tokens before it alone, so one copy serves every prompt that begins alike. The packed
sequence holds each distinct prefix once (a node), without padding.

    tree = pack([[5, 6, 7], [5, 6, 8, 9]])
    tree.ids                # [5, 6, 7, 8, 9]
    tree.grid               # [[0, 1, 2, 0], [0, 1, 3, 4]]  node of each token of each prompt, padded with 0
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os.path import commonprefix

import torch
from jaxtyping import Int
from torch import Tensor


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


def plan_trees(rows: Sequence[tuple[int, ...]], *, budget: int, unfolded: int) -> list[list[int]]:
    """Rows of each pass: prompts that begin alike together, passes evenly filled.

    Args:
        budget: most nodes of a pass.
        unfolded: most tokens, padding included, to which attention unfolds it.
    """
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
        if full or (len(batches[-1]) + 1) * width > unfolded:
            batches.append([])
            held, n, width = 0, 0, length
        batches[-1].append(row)
        held += length - n
    return batches
