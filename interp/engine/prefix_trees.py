"""Prompts packed into one sequence that holds every shared prefix once: a forest of prefix trees.

Prompts of one template share their first tokens, and prompts of one set share more: "How do I", "Write a". A token's
activations depend only on the tokens before it, so one copy serves every prompt with that prefix. The packed sequence
holds each distinct prefix once (a node), without padding.

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
    """Prompts as a prefix tree; a node is a token together with the tokens before it."""

    ids: Int[Tensor, " node"]
    """Token of each node."""
    depths: Int[Tensor, " node"]
    """Column of each node in `grid`: its position in the prompt minus the length of the shared prefix."""
    grid: Int[Tensor, "prompt pos"]
    """Node of every token of every prompt; 0 after a prompt's end."""
    prompts: Int[Tensor, " node"]
    """Index of one of the prompts that contain each node."""
    lengths: tuple[int, ...]
    """Number of tokens of each prompt."""

    @property
    def n_common(self) -> int:
        """Length of the common prefix of all prompts, shorter than each of them; 0 for a single prompt."""
        if len(self.lengths) == 1:
            return 0
        alike = (self.grid == self.grid[0]).all(0)[: min(self.lengths) - 1]
        return int(alike.long().cumprod(0).sum())


def pack(rows: Sequence[Sequence[int]], marks: Sequence[Sequence[Hashable]] | None = None) -> Tree:
    """Pack token rows into a tree.

    Args:
        marks: one per token; prefixes whose marks differ anywhere are never merged into one node.
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
    """Rows of each pass: prompts with a common prefix together, passes evenly filled.

    Args:
        budget: maximum nodes of a pass.
        unfolded: maximum tokens, padding included, to which attention unfolds a pass.
    """
    order = sorted(range(len(rows)), key=lambda row: rows[row])
    # commonprefix compares element by element, which is right for token ids.
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
