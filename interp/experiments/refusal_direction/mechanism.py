"""Section 5: how refusal is written and read, and what a jailbreak does to it.

- cosine of the last token's residual stream with the direction, per layer and condition (figure 5);
- direct attribution: what each head and MLP writes along the direction at the last token (figure 6a);
- where the top heads look from the last token: the request, text added to it, the template (figure 6b).

Conditions are ways to ask the same thing: plain, wrapped by general jailbreak templates, followed by random tokens, or
by suffixes that the user brings. The paper's adversarial suffix was optimised for one model and is not shipped.

Source: Arditi et al. 2024, arXiv:2406.11717, section 5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from interp.data.wrappers import wrappers
from interp.directions import unit
from interp.engine.activations import collect
from interp.evaluation.refusals import refusal_scores
from interp.experiments.refusal_direction.cosine_profiles import cosine_profile
from interp.experiments.refusal_direction.results import Attribution, Head, Mechanism
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.representations.heads import caches, head_readers
from interp.stats import mean_with_interval

WRAPPERS = ("no refusals", "affirmative opening", "character", "authority")
"""Names of the jailbreak wrappers (`interp.data.wrappers`) that are compared."""
REGIONS = ("before", "request", "added", "after")
"""Template and system tokens before the message, the request, text added to it, template tokens after the message."""


class Asked(NamedTuple):
    """The requests under one condition."""

    tokens: ChatTokens
    spans: list[tuple[int, int]]
    """First and last + 1 character of each message that belong to the request itself."""


def conditions(
    tokenizer: Any, requests: Sequence[str], *, suffixes: Sequence[str], seed: int, suffix_tokens: int = 20
) -> dict[str, Asked]:
    """The requests under each condition."""
    generator = torch.Generator().manual_seed(seed)
    requests = [request.strip() for request in requests]
    word_ids = [i for i in range(len(tokenizer)) if str(tokenizer.decode([i])).strip().isalpha()]

    def random_suffix() -> str:
        draw = torch.randint(len(word_ids), (suffix_tokens,), generator=generator)
        return str(tokenizer.decode([word_ids[int(i)] for i in draw])).strip()

    around: dict[str, list[tuple[str, str]]] = {"plain": [("", "")] * len(requests)}
    for wrapper in wrappers():
        if wrapper.name in WRAPPERS:
            around[wrapper.name] = [wrapper.around] * len(requests)
    around["random suffix"] = [("", " " + random_suffix()) for _ in requests]
    for number, suffix in enumerate(suffixes):
        around[f"suffix {number}"] = [("", " " + suffix)] * len(requests)
    asked = {}
    for name, pairs in around.items():
        messages = [a + request + b for request, (a, b) in zip(requests, pairs, strict=True)]
        spans = [(len(a), len(a) + len(request)) for request, (a, _) in zip(requests, pairs, strict=True)]
        asked[name] = Asked(tokenize(tokenizer, messages), spans)
    return asked


def mechanism(
    model: ChatModel,
    refusal: Float[Tensor, " d_model"],
    *,
    refused: Sequence[str],
    answered: Sequence[str],
    refusal_ids: Sequence[int],
    suffixes: Sequence[str] = (),
    seed: int = 0,
    n_heads: int = 8,
) -> Mechanism:
    """Figures 5, 6a and 6b as numbers.

    Args:
        refused: harmful requests that the model refuses when plainly asked.
        answered: harmless requests that it answers, the reference.
        n_heads: heads that are listed, those that write most along the direction on plain requests.
    """
    asked = conditions(model.tokenizer, refused, suffixes=suffixes, seed=seed)
    harmless = [text.strip() for text in answered]
    asked["harmless"] = Asked(tokenize(model.tokenizer, harmless), [(0, len(text)) for text in harmless])
    result = Mechanism(
        n_refused=len(refused),
        n_answered=len(answered),
        refusal_metric={
            name: mean_with_interval(refusal_scores(model, tokens, refusal_ids).tolist())
            for name, (tokens, _) in asked.items()
        },
        cosine={
            name: cosine_profile(model, tokens, refusal, position="t_post_inst")
            for name, (tokens, _) in asked.items()
        },
    )
    if model.normalises_attention:
        why = f"{model.name} normalises what attention writes, so a head's output is not what is added to the stream"
        return replace(result, skipped=why)
    written = {name: _written(model, tokens, spans, refusal) for name, (tokens, spans) in asked.items()}
    strength = written["plain"].heads.mean(0)
    top = [divmod(int(i), strength.shape[1]) for i in strength.flatten().topk(n_heads).indices]
    return replace(
        result,
        heads=tuple(_head(layer, head, written) for layer, head in top),
        explained=_explained(model, asked["plain"].tokens, refusal, written["plain"], top),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Written:
    """Projections of component outputs on the unit direction at the last token, and the heads' attention from there."""

    heads: Float[Tensor, "prompt layer head"]
    mlps: Float[Tensor, "prompt layer"]
    attention: Float[Tensor, "prompt layer head region"]


def _head(layer: int, head: int, written: Mapping[str, _Written]) -> Head:
    """One head under every condition."""
    return Head(
        layer=layer,
        head=head,
        projection={
            name: mean_with_interval(w.heads[:, layer, head].tolist()) for name, w in written.items()
        },
        attention={
            name: dict(zip(REGIONS, w.attention[:, layer, head].double().mean(0).tolist(), strict=True))
            for name, w in written.items()
        },
    )


@torch.no_grad()
def _written(
    model: ChatModel,
    tokens: ChatTokens,
    spans: Sequence[tuple[int, int]],
    refusal: Float[Tensor, " d_model"],
) -> _Written:
    """Each head's and MLP's projection on the direction, and each head's attention by region."""
    u = unit(refusal.float()).to(model.device, model.dtype)
    names = {
        f"blocks.{layer}.{part}"
        for layer in range(model.n_layers)
        for part in ("attn.hook_z", "attn.hook_pattern", "hook_mlp_out")
    }
    readers = head_readers(model, u)
    n_heads = readers.shape[1]
    heads = torch.empty(len(tokens), model.n_layers, n_heads)
    mlps = torch.empty(len(tokens), model.n_layers)
    attention = torch.empty(len(tokens), model.n_layers, n_heads, len(REGIONS))
    for row, cache in caches(model, tokens, names):
        by_region = regions(tokens, row, spans[row]).to(model.device, torch.float32)
        for layer in range(model.n_layers):
            z = cache[f"blocks.{layer}.attn.hook_z"][0, -1]
            pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, :, -1].float()
            heads[row, layer] = einsum(z, readers[layer], "head d_head, head d_head -> head").cpu()
            mlps[row, layer] = (cache[f"blocks.{layer}.hook_mlp_out"][0, -1] @ u).cpu()
            attention[row, layer] = einsum(pattern, by_region, "head pos, region pos -> head region").cpu()
    return _Written(heads=heads, mlps=mlps, attention=attention)


def regions(tokens: ChatTokens, row: int, span: tuple[int, int]) -> Bool[Tensor, "region pos"]:
    """A mask over tokens for each region of the prompt."""
    request = tokens.covering(row, *span)
    message = tokens.mask(row, "instruction")
    after = tokens.mask(row, "post_inst")
    return torch.stack([tokens.mask(row, "prefix"), request, message & ~request, after])


def _explained(
    model: ChatModel,
    tokens: ChatTokens,
    refusal: Float[Tensor, " d_model"],
    written: _Written,
    top: Sequence[tuple[int, int]],
) -> Attribution:
    """Mean projection of the final stream on the direction, and what each kind of component adds to it."""
    u = unit(refusal.float())
    last = model.n_layers - 1
    end = collect(model, tokens, sites=["resid_post"], layers=last, positions="t_post_inst")["resid_post"]
    start = collect(model, tokens, layers=0, positions="t_post_inst")["resid_pre"]
    total, embedding = float((end[:, 0, 0].float() @ u).mean()), float((start[:, 0, 0].float() @ u).mean())
    heads, mlps = float(written.heads.sum((1, 2)).mean()), float(written.mlps.sum(1).mean())
    return Attribution(
        total=total,
        embedding=embedding,
        heads=heads,
        mlps=mlps,
        top_heads=float(sum(written.heads[:, layer, head].mean() for layer, head in top)),
        rest=total - embedding - heads - mlps,
    )
