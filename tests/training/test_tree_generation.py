"""Trees grown by the engine: their shape, their distribution, pairs of leaves, budgets and files."""

import dataclasses
from pathlib import Path

import pytest
import torch

from interp.data.preference_trees import (
    PreferenceTree,
    TreeNode,
    read_trees,
    tree_pairs,
    within_tokens,
    write_trees,
)
from interp.engine.log_probs import completion_log_probs, next_token_log_probs
from interp.models.chat_model import ChatModel
from interp.training.tree_generation import grow_trees, sample_chains
from tests.conftest import PROMPTS


def by_length(_: str, text: str) -> float:
    return float(len(text))


def test_a_tree_has_its_shape_and_generates_every_segment_once(tiny: ChatModel) -> None:
    trees = grow_trees(tiny, PROMPTS[:3], depth=3, branching=2, segment_tokens=4, separators=(), seed=1)
    stop = tiny.tokenizer.eos_token_id
    for tree, prompt in zip(trees, PROMPTS, strict=False):
        assert tree.prompt == prompt
        for node in tree.nodes:
            children = [other for other in tree.nodes if other.parent == node.id]
            deep = len(tree.path(node.id)) == 3
            assert len(children) == (0 if deep or node.ids[-1] == stop else 2)
            assert len(node.ids) == 4 or node.ids[-1] == stop
        assert tree.generated == sum(len(node.ids) for node in tree.nodes)
        if len(tree.leaves) == 8:  # none ended early
            assert tree.generated == 4 * (2 + 4 + 8) < sum(map(len, tree.answers)) == 8 * 12
    again = grow_trees(tiny, PROMPTS[:3], depth=3, branching=2, segment_tokens=4, separators=(), seed=1)
    assert (
        trees
        == again
        != grow_trees(tiny, PROMPTS[:3], depth=3, branching=2, segment_tokens=4, separators=(), seed=2)
    )


def test_segments_are_samples_of_the_model_after_their_prefix(tiny: ChatModel) -> None:
    """The first token of the second level has the frequencies of the plain model after that prefix."""
    (tree,) = grow_trees(tiny, PROMPTS[:1], depth=1, branching=1, segment_tokens=2, separators=(), seed=3)
    greedy = grow_trees(
        tiny, PROMPTS[:2], depth=3, branching=2, segment_tokens=3, temperatures=(1e-5,), separators=(), seed=0
    )
    for found in greedy:  # at a temperature near 0 all branches are the greedy answer
        assert len(set(found.answers)) == 1
    answers = [found.answers[0] for found in greedy]
    log_probs = completion_log_probs(tiny, PROMPTS[:2], answers)
    for row, ids in enumerate(answers):
        for place in range(len(ids)):
            other = [*ids[:place], (ids[place] + 1) % 250]
            changed = completion_log_probs(tiny, [PROMPTS[row]], [other])[0][place]
            assert log_probs[row][place] >= changed
    assert tree.generated == len(tree.answers[0]) <= 2


def test_separators_end_segments(tiny: ChatModel) -> None:
    trees = grow_trees(tiny, PROMPTS, depth=2, branching=2, segment_tokens=6, separators=("e", "a"), seed=0)
    segments = [node.text for tree in trees for node in tree.nodes]
    assert all(not any(mark in text[:-1] for mark in "ea") for text in segments)
    assert any(text.endswith(("e", "a")) for text in segments) or all(len(text) <= 6 for text in segments)


def test_pairs_are_leaves_of_one_tree_ordered_by_the_oracle_within_budgets(tmp_path: Path) -> None:
    def node(number: int, parent: int | None, text: str) -> TreeNode:
        return TreeNode(id=number, parent=parent, ids=tuple(range(len(text))), text=text)

    nodes = (node(0, None, "ab"), node(1, 0, "c"), node(2, 0, "cde"), node(3, None, "x"))
    tree = PreferenceTree(prompt="p", nodes=nodes)
    assert tree.leaves == (1, 2, 3) and tree.texts == ("abc", "abcde", "x") and tree.generated == 7
    assert tree.distance(1, 2) == pytest.approx(1 - 2 / 5)
    assert tree.distance(1, 1) == 0 and tree.distance(1, 3) == 1
    pairs = tree_pairs([tree, dataclasses.replace(tree, prompt="q")], by_length, labels=100)
    assert len(pairs) == 6 and {pair.prompt for pair in pairs} == {"p", "q"}
    assert all(len(pair.chosen) > len(pair.rejected) for pair in pairs)
    assert len(tree_pairs([tree] * 4, by_length, labels=5)) == 5
    single = tree_pairs([tree], by_length, labels=100, reuse=False)
    assert len(single) == 1
    assert tree_pairs([tree], lambda _, __: 0.0, labels=9) == []  # equal scores say nothing
    assert len(within_tokens([tree] * 5, 22)) == 3
    assert read_trees(write_trees(tmp_path / "trees.jsonl", [tree, tree])) == [tree, tree]
    with pytest.raises(ValueError, match="parents come first"):
        PreferenceTree(prompt="p", nodes=(node(0, 1, "a"), node(1, None, "b")))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "p"}')
    with pytest.raises(ValueError, match="row 1: not a node of a tree"):
        read_trees(tmp_path / "bad.jsonl")


def test_chains_are_independent_answers(tiny: ChatModel) -> None:
    (chains,) = sample_chains(tiny, PROMPTS[:1], n=400, max_new_tokens=1, seed=0)
    assert len(chains.leaves) == 400 == chains.generated
    expected = next_token_log_probs(tiny, PROMPTS[:1])[0].exp()
    counts = torch.bincount(torch.tensor([a[0] for a in chains.answers]), minlength=tiny.d_vocab) / 400
    top = int(expected.argmax())
    # SD of a frequency of 400: below 0.025.
    assert abs(float(counts[top] - expected[top])) < 0.1
    with pytest.raises(ValueError, match="must be 1 or more, got 0, 2, 4"):
        grow_trees(tiny, PROMPTS[:1], depth=0, segment_tokens=4)
