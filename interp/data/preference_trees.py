"""Prefix trees of answers, and preference pairs from them: a format of nodes, pairs of leaves, and what they cost.

    trees[0].answers                                   # token ids of every leaf, from root to leaf
    pairs = tree_pairs(trees, oracle, labels=64, seed=0)
    write_trees("trees.jsonl", trees); read_trees("trees.jsonl")

A node is a segment of an answer; a path from the root to a leaf is one complete answer, and pairs are two leaves of
one tree. Answers of a tree share tokens, so that a budget of generated tokens gives more of them than independent
chains do, and less different ones. Both budgets are counted: tokens that were generated, and labels (comparisons).

Trees are grown by `interp.training.tree_generation`; nothing here runs a model. Source: Qiu et al. 2025,
arXiv:2402.10184, algorithm 1 (depth, branching, separators and temperatures were not found and are settings there).
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from interp.data.files import read_rows
from interp.data.preferences import PreferencePair
from interp.storage.atomic_files import write_file
from interp.storage.paths import expanded

Oracle = Callable[[str, str], float]
"""Programmatic preference: the score of an answer to a prompt; the larger one is preferred."""


@dataclass(frozen=True, kw_only=True)
class TreeNode:
    """A segment of an answer."""

    id: int
    """Number in its tree; a parent comes before its children."""
    parent: int | None
    """Number of the segment before it; None for a segment that begins answers."""
    ids: tuple[int, ...]
    """Its tokens, an end-of-turn token included."""
    text: str
    """Its tokens as text."""


@dataclass(frozen=True, kw_only=True)
class PreferenceTree:
    """The answers to one prompt as a prefix tree; independent chains are a tree without inner nodes."""

    prompt: str
    """What is answered."""
    nodes: tuple[TreeNode, ...]
    """Segments, parents first."""

    def __post_init__(self) -> None:
        for place, node in enumerate(self.nodes):
            if node.id != place or not (node.parent is None or 0 <= node.parent < place):
                raise ValueError(
                    f"node {node.id} stands at place {place} with parent {node.parent}: ids count from 0, and parents "
                    "come first"
                )

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        """Numbers of the nodes without children."""
        inner = {node.parent for node in self.nodes}
        return tuple(node.id for node in self.nodes if node.id not in inner)

    def path(self, leaf: int) -> list[TreeNode]:
        """The segments from the root to a node."""
        nodes: list[TreeNode] = []
        at: int | None = leaf
        while at is not None:
            nodes.append(self.nodes[at])
            at = self.nodes[at].parent
        return nodes[::-1]

    @cached_property
    def answers(self) -> tuple[tuple[int, ...], ...]:
        """Token ids of every leaf's answer."""
        return tuple(tuple(i for node in self.path(leaf) for i in node.ids) for leaf in self.leaves)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Text of every leaf's answer."""
        return tuple("".join(node.text for node in self.path(leaf)).strip() for leaf in self.leaves)

    @property
    def generated(self) -> int:
        """Tokens that were generated: every segment once."""
        return sum(len(node.ids) for node in self.nodes)

    def distance(self, a: int, b: int) -> float:
        """Share of the longer of two leaves' answers that they do not have in common; 0 for one leaf, 1 for chains."""
        one, other = ([node.id for node in self.path(leaf)] for leaf in (a, b))
        common = sum(len(self.nodes[i].ids) for i, j in zip(one, other, strict=False) if i == j)
        length = max(sum(len(self.nodes[i].ids) for i in path) for path in (one, other))
        return 1 - common / length


def tree_pairs(
    trees: Sequence[PreferenceTree], oracle: Oracle, *, labels: int, seed: int = 0, reuse: bool = True
) -> list[PreferencePair]:
    """At most this many pairs of leaves of one tree, ordered by the oracle, in a seeded random order.

    Pairs of equal answers or scores say nothing and are left out.

    Args:
        reuse: a leaf may stand in several pairs; without it each stands in one at most, as an independent answer would.
    """
    shuffle = random.Random(seed)
    candidates: list[tuple[int, int, int]] = []
    for number, tree in enumerate(trees):
        n = len(tree.leaves)
        if reuse:
            candidates += [(number, a, b) for a in range(n) for b in range(a + 1, n)]
        else:
            order = shuffle.sample(range(n), n)
            candidates += [(number, order[i], order[i + 1]) for i in range(0, n - 1, 2)]
    shuffle.shuffle(candidates)
    pairs: list[PreferencePair] = []
    for number, a, b in candidates:
        if len(pairs) == labels:
            break
        tree = trees[number]
        texts = tree.texts[a], tree.texts[b]
        scores = [oracle(tree.prompt, text) for text in texts]
        if scores[0] == scores[1] or texts[0] == texts[1] or not all(texts):
            continue
        better = int(scores[1] > scores[0])
        pairs.append(
            PreferencePair(
                id=f"tree{number}-{a}-{b}",
                prompt=tree.prompt,
                chosen=texts[better],
                rejected=texts[1 - better],
            )
        )
    return pairs


def within_tokens(trees: Sequence[PreferenceTree], tokens: int) -> list[PreferenceTree]:
    """The first trees that were generated with at most this many tokens together."""
    taken: list[PreferenceTree] = []
    for tree in trees:
        tokens -= tree.generated
        if tokens < 0:
            break
        taken.append(tree)
    return taken


def write_trees(path: str | Path, trees: Sequence[PreferenceTree]) -> Path:
    """Write one node a line: tree, prompt, id, parent, ids, text."""
    lines = [
        json.dumps(
            {
                "tree": number,
                "prompt": tree.prompt,
                "id": node.id,
                "parent": node.parent,
                "ids": list(node.ids),
                "text": node.text,
            }
        )
        for number, tree in enumerate(trees)
        for node in tree.nodes
    ]
    write_file(expanded(path), ("\n".join(lines) + "\n").encode())
    return expanded(path)


def read_trees(path: str | Path) -> list[PreferenceTree]:
    """Trees that `write_trees` wrote.

    Raises:
        ValueError: a row that is not a node, or nodes out of order; the message names the file.
    """
    found: dict[int, tuple[str, list[TreeNode]]] = {}
    for number, row in enumerate(read_rows(path), start=1):
        try:
            nodes = found.setdefault(int(row["tree"]), (str(row["prompt"]), []))[1]
            parent = row["parent"]
            nodes.append(
                TreeNode(
                    id=int(row["id"]),
                    parent=None if parent is None else int(parent),
                    ids=tuple(map(int, row["ids"])),
                    text=str(row["text"]),
                )
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}, row {number}: not a node of a tree ({error!r})") from error
    return [PreferenceTree(prompt=prompt, nodes=tuple(nodes)) for prompt, nodes in found.values()]
