"""Distributions of many similar texts from one pass over their prefix tree: each distinct prefix runs once.

Perturbed versions of a text share what comes before their first change. A node of the tree
(`interp.engine.prefix_trees`) is a token together with the tokens before it, so its distribution, and all that is
reduced from it, is computed once, however many texts contain it.

    values = map_packed_positions(model, tokens, reduce)
    values[3]                              # one entry for each token of text 3 but the first

Equal to `interp.engine.log_probs.map_positions` on the same texts without interventions.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.engine.applying import apply
from interp.engine.batching import run_batches
from interp.engine.budgets import PassBudget
from interp.engine.log_probs import PositionReducer, token_count
from interp.engine.packing import Packed, packed_passes
from interp.engine.unembedding import CompletionStates
from interp.models.chat_model import ChatModel
from interp.models.contexts import check_context
from interp.models.tokens import ChatTokens


@torch.no_grad()
def map_packed_positions(
    model: ChatModel, tokens: ChatTokens, reduce: PositionReducer
) -> list[Float[Tensor, "token *rest"]]:
    """Reduce the distribution that each token of each text comes from, once for each distinct prefix.

    `interp.engine.activations.fast_path_agrees` says whether a model and its texts can run packed.

    Args:
        tokens: texts of two tokens or more.

    Returns:
        For each text the values of all tokens but its first, on the CPU.

    Raises:
        ValueError: a text that is too long, or of fewer than two tokens.
    """
    check_context(model, tokens)
    if short := [row for row, ids in enumerate(tokens.ids) if len(ids) < 2]:
        raise ValueError(f"text {short[0]} has fewer than 2 tokens, of which none is scored")
    out: list[Tensor] = [torch.empty(0)] * len(tokens)
    with apply(model, []) as applied, packed_passes(model, tokens, applied, max_shared=0) as passes:

        def run(rows: list[int]) -> None:
            packed = passes.pack(rows)
            with passes.whole(packed):
                output: Any = model.decoder(**packed.inputs)
            values, tree = _by_node(model, packed, output, reduce), packed.tree
            for number, row in enumerate(rows):
                out[row] = values[tree.grid[number, 1 : tree.lengths[number]]]

        for _ in run_batches(passes.batches, run, max_rows=passes.max_rows):
            pass
    return out


def _by_node(
    model: ChatModel, packed: Packed, output: Any, reduce: PositionReducer
) -> Float[Tensor, "node *rest"]:
    """The reduced distribution at the parent of every node; first tokens, which have none, are left empty."""
    tree, budget, size = packed.tree, PassBudget.for_(model), token_count(model)
    nodes = (tree.depths > 0).nonzero()[:, 0]
    parents = tree.grid[tree.prompts[nodes], tree.depths[nodes] - 1]
    final = CompletionStates(
        states=output.last_hidden_state[0, parents.to(model.device)],
        lengths=(len(nodes),),
        output=type(output),
    )
    ids, parts = tree.ids[nodes].to(model.device), list[Tensor]()
    for chunk in final.chunks(budget.unembedded_positions):
        logits, targets = final.logits(model, chunk)[:, :size], ids[chunk]
        for start in range(0, len(logits), budget.reduced_positions):
            few = slice(start, start + budget.reduced_positions)
            parts.append(reduce([logits[few].float().contiguous()], targets[few]).cpu())
    reduced = torch.cat(parts)
    values = reduced.new_full((len(tree.ids), *reduced.shape[1:]), torch.nan)
    values[nodes] = reduced
    return values
