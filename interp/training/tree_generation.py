"""Answers grown as prefix trees, or sampled as independent chains, by the engine.

    trees = grow_trees(model, prompts, depth=3, branching=2, segment_tokens=12)
    chains = sample_chains(model, prompts, n=8, max_new_tokens=36)

A tree decodes as one batch that grows: where a segment of at most `segment_tokens` ends, at a separator or by length,
its cached keys and values serve all its children (see `interp.engine.tree_decoding`), so that every token is run once.
A tree of depth D and branching B generates B + B^2 + ... + B^D segments for B^D answers of D segments each; chains
generate D B^D. A tree depends on its place among the prompts and on the seed, not on the other prompts.

Source: Qiu et al. 2025, arXiv:2402.10184, algorithm 1.
"""

from collections.abc import Sequence

from interp.data.preference_trees import PreferenceTree, TreeNode
from interp.engine.tree_decoding import Segments, TreeShape, sample_trees
from interp.models.chat_model import ChatModel
from interp.models.tokens import PromptInput, as_tokens

SEPARATORS = (".", "\n", "!", "?")
"""Texts that end a segment."""


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
    shape = TreeShape(
        depth=depth,
        branching=branching,
        segment_tokens=segment_tokens,
        temperatures=tuple(map(float, temperatures)),
    )
    tokens = as_tokens(model.tokenizer, prompts)
    ended: dict[int, bool] = {}

    def ends(token: int) -> bool:
        if token not in ended:
            ended[token] = str(model.tokenizer.decode([token])).endswith(tuple(separators))
        return ended[token]

    grown = sample_trees(model, tokens, shape, seed=seed, ends=ends if separators else None)
    texts = tokens.identity.texts
    return [_tree(model, text, branching, segments) for text, segments in zip(texts, grown, strict=True)]


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


def _tree(model: ChatModel, prompt: str, branching: int, segments: Segments) -> PreferenceTree:
    """Nodes in the order of their segments, level by level."""
    ids = {number: place for place, number in enumerate(segments)}
    texts = model.tokenizer.batch_decode([list(row) for row in segments.values()], skip_special_tokens=True)
    nodes = [
        TreeNode(id=ids[number], parent=ids.get((number - 1) // branching), ids=row, text=text)
        for (number, row), text in zip(segments.items(), texts, strict=True)
    ]
    return PreferenceTree(prompt=prompt, nodes=tuple(nodes))
