"""Scores by depth: every next-token distribution as the logit lens reads it after each number of blocks.

    by_depth = lens_scores(model, texts, depths=(0, 10, 20, 30))
    by_depth[0][20]["fast_detect_gpt"]             # of the first text, after 20 blocks

At the full depth they are the scores of `interp.detectors.machine_text.reading`. The lens describes: no component of
the model reads the stream in this way, and what it cannot read there may well be there.

Source: nostalgebraist 2020 (logit lens); scores as in `interp.detectors.machine_text.scores`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.detectors.machine_text.reading import token_ids
from interp.detectors.machine_text.scores import TextScores, TokenScores, distribution_columns, text_scores
from interp.display.progress import progress
from interp.engine.activations import collect
from interp.engine.budgets import PassBudget
from interp.engine.log_probs import token_count
from interp.engine.plain_texts import scored_windows
from interp.engine.unembedding import read_out
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens


def lens_scores(
    model: ChatModel,
    texts: Sequence[str],
    *,
    depths: Sequence[int] | None = None,
    show_progress: bool = False,
) -> list[dict[int, TextScores]]:
    """All scores of every text at each depth, in the order of the texts.

    Args:
        depths: numbers of blocks that were run, 0 to n_layers; None is all.

    Raises:
        ValueError: a depth out of range, a text of fewer than two tokens, or one that is longer than the context.
    """
    chosen = tuple(range(model.n_layers + 1)) if depths is None else tuple(depths)
    if wrong := [depth for depth in chosen if not 0 <= depth <= model.n_layers]:
        raise ValueError(f"depths must be within 0 and {model.n_layers}, got {wrong[0]}")
    rows = token_ids([model], texts)
    shown = progress(rows, total=len(rows), label="texts through the lens", show=show_progress)
    return [_by_depth(model, ids, chosen) for ids in shown]


def _by_depth(model: ChatModel, ids: Sequence[int], depths: Sequence[int]) -> dict[int, TextScores]:
    windows = scored_windows([model], [ids])
    if len(windows.texts) > 1:
        raise ValueError(f"a text of {len(ids)} tokens is longer than the context of {model.name}; cut it")
    context, scored = windows.prompts[0].ids[0], windows.completions[0]
    whole = ChatTokens(
        ids=((*context, *scored),),
        starts=(0,),
        ends=(len(context) + len(scored),),
        tokenizer=model.tokenizer,
    )
    # Each scored token is predicted at the one before it.
    positions = [-place for place in range(len(scored) + 1, 1, -1)]
    last = model.n_layers - 1
    acts = collect(
        model,
        whole,
        sites=("resid_pre", "resid_post") if last + 1 in depths else "resid_pre",
        layers=sorted({min(depth, last) for depth in depths}),
        positions=positions,
    )
    targets = torch.tensor(scored)
    found: dict[int, TextScores] = {}
    for depth in depths:
        site = "resid_post" if depth > last else "resid_pre"
        stream = acts[site][0, acts.layers.index(min(depth, last))]
        tokens = TokenScores.of_columns(targets, _columns(model, stream, targets))
        found[depth] = text_scores(tokens)
    return found


def _columns(
    model: ChatModel, stream: Float[Tensor, "token d_model"], targets: Int[Tensor, " token"]
) -> Float[Tensor, "token column"]:
    budget, size = PassBudget.for_(model), token_count(model)
    parts = []
    for start in range(0, len(stream), budget.unembedded_positions):
        stop = start + budget.unembedded_positions
        logits = read_out(model, stream[start:stop])[:, :size]
        for first in range(0, len(logits), budget.reduced_positions):
            few = slice(first, first + budget.reduced_positions)
            ids = targets[start:stop][few].to(logits.device)
            parts.append(distribution_columns([logits[few].float().contiguous()], ids).cpu())
    return torch.cat(parts)
