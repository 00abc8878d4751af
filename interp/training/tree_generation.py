"""Answers grown as prefix trees, or sampled as independent chains, by the engine.

    trees = grow_trees(model, prompts, depth=3, branching=2, segment_tokens=12)
    chains = sample_chains(model, prompts, n=8, max_new_tokens=36)

At every level the prefix of a node is run once and its cached keys and values are copied to its children, which then
sample `segment_tokens` each, cut where a separator ends a segment. A tree of depth D and branching B generates
B + B^2 + ... + B^D segments for B^D answers of D segments each; chains generate D B^D.

Source: Qiu et al. 2025, arXiv:2402.10184, algorithm 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from interp.data.preference_trees import PreferenceTree, TreeNode
from interp.engine.applying import apply
from interp.engine.decoding import decode_steps, decoding_passes, packed_weights, stop_ids
from interp.engine.generation import picker
from interp.models.chat_model import ChatModel
from interp.models.contexts import check_context
from interp.models.tokens import ChatTokens, PromptInput, as_tokens
from interp.training.reward_models import with_replies

SEPARATORS = (".", "\n", "!", "?")
"""Texts that end a segment."""


class _Open(NamedTuple):
    """A node that will get children."""

    tree: int
    node: int | None
    ids: tuple[int, ...]
    """Answer tokens up to and with it."""


def grow_trees(
    model: ChatModel,
    prompts: PromptInput,
    *,
    depth: int,
    branching: int = 2,
    segment_tokens: int = 12,
    temperatures: Sequence[float] = (1.0,),
    separators: Sequence[str] = SEPARATORS,
    seed: int = 0,
) -> list[PreferenceTree]:
    """One tree of answers to every prompt.

    Args:
        depth: levels of segments.
        branching: segments sampled after each node.
        segment_tokens: tokens of a segment at most.
        temperatures: of each level; the last one also of all that follow.
        separators: texts that end a segment before that; none for segments of equal length.
        seed: seed of the sampling.

    Raises:
        ValueError: depth, branching or segment_tokens below 1, or a prompt that does not fit with its answers.
    """
    if min(depth, branching, segment_tokens) < 1:
        raise ValueError(
            f"depth, branching and segment_tokens must be 1 or more, got {depth}, {branching}, {segment_tokens}"
        )
    tokens = as_tokens(model.tokenizer, prompts)
    check_context(model, tokens, new_tokens=depth * segment_tokens)
    nodes: list[list[TreeNode]] = [[] for _ in range(len(tokens))]
    waiting = [_Open(tree, None, ()) for tree in range(len(tokens))]
    stops = stop_ids(model)
    for level in range(depth):
        temperature = temperatures[min(level, len(temperatures) - 1)]
        found = _children(
            model, tokens, waiting, branching, segment_tokens, temperature, separators, seed + 7919 * level
        )
        opened: list[_Open] = []
        for parent, segments in zip(waiting, found, strict=True):
            for ids in segments:
                number = len(nodes[parent.tree])
                text = str(model.tokenizer.decode(ids, skip_special_tokens=True))
                nodes[parent.tree].append(TreeNode(id=number, parent=parent.node, ids=tuple(ids), text=text))
                if ids[-1] not in stops:
                    opened.append(_Open(parent.tree, number, (*parent.ids, *ids)))
        waiting = opened
        if not waiting:
            break
    texts = tokens.identity.texts
    return [PreferenceTree(prompt=text, nodes=tuple(part)) for text, part in zip(texts, nodes, strict=True)]


def sample_chains(
    model: ChatModel,
    prompts: PromptInput,
    *,
    n: int,
    max_new_tokens: int = 36,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[PreferenceTree]:
    """n independent answers to every prompt, as trees of one level; the prompt is run once for all of them."""
    return grow_trees(
        model,
        prompts,
        depth=1,
        branching=n,
        segment_tokens=max_new_tokens,
        temperatures=(temperature,),
        separators=(),
        seed=seed,
    )


def _children(
    model: ChatModel,
    tokens: ChatTokens,
    parents: Sequence[_Open],
    branching: int,
    segment_tokens: int,
    temperature: float,
    separators: Sequence[str],
    seed: int,
) -> list[list[list[int]]]:
    """The segments that follow every parent; its prefix is run once."""
    prefixes = with_replies(tokens.take([parent.tree for parent in parents]), [p.ids for p in parents])
    pick = picker(segment_tokens, temperature, seed, ())
    weights = packed_weights(model, len(parents) * branching, segment_tokens)
    done: list[list[list[int]]] = [[[] for _ in range(branching)] for _ in parents]
    with torch.no_grad(), apply(model, ()) as applied:
        for rows, (logits, state) in decoding_passes(model, prefixes, applied, weights, segment_tokens):
            copies = [i for i in range(len(rows)) for _ in range(branching)]
            if branching > 1:
                state.take(copies)
            limits = [segment_tokens] * len(copies)
            steps = decode_steps(
                model,
                logits[copies],
                state,
                pick,
                [prefixes.ids[rows[i]] for i in copies],
                max_new_tokens=segment_tokens,
                shrink=True,
                limits=limits,
            )
            for step in steps:
                for row, token in zip(step.rows, step.ids, strict=True):
                    segment = done[rows[copies[row]]][row % branching]
                    segment.append(token)
                    if separators and str(model.tokenizer.decode([token])).endswith(tuple(separators)):
                        limits[row] = 0  # read after this decoding step
    return done
