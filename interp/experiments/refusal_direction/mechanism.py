"""How refusal is written and read: sections 5 and appendix J of the refusal-direction paper.

- cosine of the last token's residual stream with the direction, per layer and condition (figure 5);
- direct attribution: what each head and MLP writes along the direction at the last token (figure 6a);
- where the top heads look from the last token: the request, text added to it, the template (figure 6b);
- the same cosine in the base model (figure 24).

Conditions are ways to ask the same thing: plain, wrapped by general jailbreak templates, followed by random tokens, or
by suffixes that the user brings. The paper's adversarial suffix was optimised for one model and is not shipped.

Source: Arditi et al. 2024, arXiv:2406.11717, section 5 and appendix J.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp.data.wrappers import wrappers
from interp.directions import cosine, unit
from interp.engine.activations import collect
from interp.evaluation.refusals import refusal_scores
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.stats import mean_with_interval

WRAPPERS = ("no refusals", "affirmative opening", "character", "authority")
"""Names of the jailbreak wrappers (`interp.data.wrappers`) that are compared."""
REGIONS = ("before", "request", "added", "after")
"""Template and system tokens before the message, the request, text added to it, template tokens after the message."""


def conditions(
    tokenizer: Any, requests: Sequence[str], *, suffixes: Sequence[str], seed: int, suffix_tokens: int = 20
) -> dict[str, tuple[ChatTokens, list[tuple[int, int]]]]:
    """The requests under each condition, with the characters of the message that are the request itself."""
    generator = torch.Generator().manual_seed(seed)
    requests = [request.strip() for request in requests]
    plain_ids = [i for i in range(len(tokenizer)) if str(tokenizer.decode([i])).strip().isalpha()]

    def random_suffix() -> str:
        draw = torch.randint(len(plain_ids), (suffix_tokens,), generator=generator)
        return str(tokenizer.decode([plain_ids[int(i)] for i in draw])).strip()

    asked: dict[str, list[tuple[str, str]]] = {"plain": [("", "")] * len(requests)}
    for wrapper in wrappers():
        if wrapper.name in WRAPPERS:
            asked[wrapper.name] = [wrapper.around] * len(requests)
    asked["random suffix"] = [("", " " + random_suffix()) for _ in requests]
    for number, suffix in enumerate(suffixes):
        asked[f"suffix {number}"] = [("", " " + suffix)] * len(requests)
    found = {}
    for name, around in asked.items():
        messages = [a + request + b for request, (a, b) in zip(requests, around, strict=True)]
        spans = [(len(a), len(a) + len(request)) for request, (a, _) in zip(requests, around, strict=True)]
        found[name] = tokenize(tokenizer, messages), spans
    return found


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
) -> dict[str, Any]:
    """Figures 5, 6a and 6b as numbers.

    Args:
        refused: harmful requests that the model refuses when plainly asked.
        answered: harmless requests that it answers, the reference.

    Returns:
        `refusal_metric`, `cosine` (mean and sd per layer) by condition; `heads`, the top heads on plain requests with
        their projections and attention by region; `explained`, shares of the final projection on plain requests.
    """
    asked = conditions(model.tokenizer, refused, suffixes=suffixes, seed=seed)
    by_name = {name: tokens for name, (tokens, _) in asked.items()}
    by_name["harmless"] = tokenize(model.tokenizer, [text.strip() for text in answered])
    cosines, metrics = {}, {}
    for name, tokens in by_name.items():
        last = collect(model, tokens, positions="t_post_inst")["resid_pre"][:, :, 0].float()
        along = cosine(last, refusal.expand_as(last))
        cosines[name] = {
            "mean": along.mean(0).tolist(),
            # Population form, as the paper's band.
            "sd": along.std(0, correction=0).tolist(),
        }
        metrics[name] = mean_with_interval(refusal_scores(model, tokens, refusal_ids).tolist()).as_dict()
    found: dict[str, Any] = {
        "n": {"refused": len(refused), "answered": len(answered)},
        "refusal_metric": metrics,
        "cosine": cosines,
    }
    if any(block.attn_writer is not block.attention for block in model.blocks):
        why = f"{model.name} normalises what attention writes, so a head's output is not what is added to the stream"
        return {**found, "heads": [], "explained": None, "skipped": why}
    spans = {name: spans for name, (_, spans) in asked.items()}
    spans["harmless"] = [(0, len(text.strip())) for text in answered]
    written = {name: _written(model, tokens, spans[name], refusal) for name, tokens in by_name.items()}
    plain = written["plain"]
    strength = plain["heads"].mean(0)
    top = [divmod(int(i), strength.shape[1]) for i in strength.flatten().topk(n_heads).indices]
    heads = [
        {
            "layer": layer,
            "head": head,
            "projection": {
                name: mean_with_interval(w["heads"][:, layer, head].tolist()).as_dict()
                for name, w in written.items()
            },
            "attention": {
                name: dict(
                    zip(REGIONS, w["attention"][:, layer, head].double().mean(0).tolist(), strict=True)
                )
                for name, w in written.items()
            },
        }
        for layer, head in top
    ]
    return {**found, "heads": heads, "explained": _explained(model, by_name["plain"], refusal, plain, top)}


@torch.no_grad()
def _written(
    model: ChatModel,
    tokens: ChatTokens,
    spans: Sequence[tuple[int, int]],
    refusal: Float[Tensor, " d_model"],
) -> dict[str, Tensor]:
    """At the last token: each head's and MLP's projection on the direction, and each head's attention by region."""
    bridge, u = model.bridge, unit(refusal.float()).to(model.device, model.dtype)
    names = {
        f"blocks.{layer}.{part}"
        for layer in range(model.n_layers)
        for part in ("attn.hook_z", "attn.hook_pattern", "hook_mlp_out")
    }
    # What a head writes along u: its output times W_O u.
    readers = torch.stack(
        [
            einsum(bridge.blocks[layer].attn.W_O, u, "head d_head d_model, d_model -> head d_head")
            for layer in range(model.n_layers)
        ]
    )
    n_heads = readers.shape[1]
    out = {
        "heads": torch.empty(len(tokens), model.n_layers, n_heads),
        "mlps": torch.empty(len(tokens), model.n_layers),
        "attention": torch.empty(len(tokens), model.n_layers, n_heads, len(REGIONS)),
    }
    for row, ids in enumerate(tokens.ids):  # one at a time: no padding to see
        _, cache = bridge.run_with_cache(
            torch.tensor([ids], device=model.device), names_filter=lambda name: name in names
        )
        regions = _regions(tokens, row, spans[row]).to(model.device, torch.float32)
        for layer in range(model.n_layers):
            z = cache[f"blocks.{layer}.attn.hook_z"][0, -1]
            pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, :, -1].float()
            out["heads"][row, layer] = einsum(z, readers[layer], "head d_head, head d_head -> head").cpu()
            out["mlps"][row, layer] = (cache[f"blocks.{layer}.hook_mlp_out"][0, -1] @ u).cpu()
            out["attention"][row, layer] = einsum(
                pattern, regions, "head pos, region pos -> head region"
            ).cpu()
    return out


def _regions(tokens: ChatTokens, row: int, span: tuple[int, int]) -> Tensor:
    request = tokens.covering(row, *span)
    message = tokens.mask(row, "instruction")
    after = tokens.mask(row, "post_inst")
    return torch.stack([tokens.mask(row, "prefix"), request, message & ~request, after])


def _explained(
    model: ChatModel,
    tokens: ChatTokens,
    refusal: Float[Tensor, " d_model"],
    written: Mapping[str, Tensor],
    top: Sequence[tuple[int, int]],
) -> dict[str, float]:
    """Mean projection of the final stream on the direction, and what each kind of component adds to it."""
    u = unit(refusal.float())
    last = model.n_layers - 1
    end = collect(model, tokens, sites=["resid_post"], layers=last, positions="t_post_inst")["resid_post"]
    start = collect(model, tokens, layers=0, positions="t_post_inst")["resid_pre"]
    parts = {
        "total": float((end[:, 0, 0].float() @ u).mean()),
        "embedding": float((start[:, 0, 0].float() @ u).mean()),
        "heads": float(written["heads"].sum((1, 2)).mean()),
        "mlps": float(written["mlps"].sum(1).mean()),
        "top_heads": float(sum(written["heads"][:, layer, head].mean() for layer, head in top)),
    }
    return {**parts, "rest": parts["total"] - parts["embedding"] - parts["heads"] - parts["mlps"]}


def base_check(
    model: ChatModel,
    base: ChatModel,
    refusal: Float[Tensor, " d_model"],
    *,
    harmful: Sequence[str],
    harmless: Sequence[str],
) -> dict[str, Any]:
    """Cosine with the chat model's direction at a newline after each prompt, in the chat and in the base model.

    The chat model gets its template's tokens before the instruction, the base model nothing (appendix J).

    Returns:
        `{model}, {kind}` → mean and sd per layer.

    Raises:
        ValueError: models of different depth or width.
    """
    if (model.n_layers, model.d_model) != (base.n_layers, base.d_model):
        raise ValueError(
            f"the base model must have the chat model's shape ({model.n_layers} layers, d_model {model.d_model}); "
            f"{base.name} has {base.n_layers} layers, d_model {base.d_model}"
        )
    found = {}
    for label, one in (("chat", model), ("base", base)):
        for kind, texts in (("harmful", harmful), ("harmless", harmless)):
            tokens = _with_newline(one, texts, with_template=label == "chat")
            last = collect(one, tokens, positions=-1)["resid_pre"][:, :, 0].float()
            along = cosine(last, refusal.expand_as(last))
            found[f"{label}, {kind}"] = {
                "mean": along.mean(0).tolist(),
                "sd": along.std(0, correction=0).tolist(),
            }
    return {"model": model.name, "base": base.name, "n": len(harmful), "cosine": found}


def _with_newline(model: ChatModel, texts: Sequence[str], *, with_template: bool) -> ChatTokens:
    before: tuple[int, ...] = ()
    if with_template:
        whole = tokenize(model.tokenizer, [texts[0]])
        before = whole.ids[0][: whole.starts[0]]
    rows = [
        tuple(int(i) for i in model.tokenizer(text + "\n", add_special_tokens=not with_template)["input_ids"])  # pyright: ignore[reportArgumentType]
        for text in texts
    ]
    return ChatTokens(
        ids=tuple(before + row for row in rows),
        starts=(len(before),) * len(rows),
        ends=tuple(len(before) + len(row) for row in rows),
        tokenizer=model.tokenizer,
    )
