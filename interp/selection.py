"""Choosing one refusal direction among candidates: the published scores and the published rule.

For a candidate r read at layer l and position i, on validation prompts:

| score | intervention | prompts | quantity |
|---|---|---|---|
| bypass | ablate r everywhere | harmful | mean refusal metric; lower is better |
| induce | add r at layer l, all positions | harmless | mean refusal metric |
| kl | ablate r everywhere | harmless | mean KL(unmodified || ablated) at the last token |

The pick has the lowest bypass among candidates with induce >= 0, kl <= 0.1 and l < int(0.8 L).

Source: Arditi et al. 2024, arXiv:2406.11717, section 2.3 and appendix C; the layer cut rounds down and the other two
are not strict, as in the released code.
"""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from interp.chat import ChatTokens
from interp.generation import next_token_log_probs
from interp.interventions import Ablate, Add
from interp.metrics import kl_divergence, refusal_metric, refusal_scores
from interp.models import ChatModel


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One candidate direction and its scores."""

    position: int
    """Token it was read at, counted from the prompt's end: -1 is the last."""
    layer: int
    """Layer it was read at and is added at."""
    bypass: float
    """Mean refusal metric on harmful prompts with the direction ablated, in nats."""
    induce: float
    """Mean refusal metric on harmless prompts with the direction added, in nats."""
    kl: float
    """Mean KL on harmless prompts with the direction ablated, in nats."""

    def as_dict(self) -> dict[str, float | int]:
        """Plain numbers, as results store them."""
        return asdict(self)


class NothingSurvives(ValueError):
    """No candidate passes the filters; the message names the nearest misses."""


def pick(
    scores: Any,
    *,
    n_layers: int,
    kl_threshold: float = 0.1,
    induce_threshold: float = 0.0,
    prune_layer_fraction: float = 0.2,
) -> Candidate:
    """The candidate with the lowest bypass score that passes the filters; ties go to the lower position, then layer.

    Args:
        scores: table with columns position, layer, bypass, induce, kl: a list of dicts or a DataFrame.
        n_layers: number of the model's layers.
        kl_threshold: largest kl allowed.
        induce_threshold: least induce needed.
        prune_layer_fraction: share of the last layers that is left out.

    Raises:
        NothingSurvives: with the three candidates that miss by least and the option that would admit each.
        ValueError: an empty table or a missing column.
    """
    table = _table(scores)
    kept = [
        c
        for c in table
        if reason(
            c,
            n_layers=n_layers,
            kl_threshold=kl_threshold,
            induce_threshold=induce_threshold,
            prune_layer_fraction=prune_layer_fraction,
        )
        is None
    ]
    if kept:
        return min(kept, key=lambda c: (c.bypass, c.position, c.layer))
    finite = [c for c in table if _finite(c) and c.layer < int(n_layers * (1 - prune_layer_fraction))]
    near = sorted(
        finite, key=lambda c: max(c.kl - kl_threshold, 0.0) + max(induce_threshold - c.induce, 0.0)
    )[:3]
    shown = "; ".join(
        f"position {c.position} layer {c.layer} (bypass {c.bypass:.2f}, induce {c.induce:.2f}, kl {c.kl:.3f}) needs "
        + " and ".join(
            [f"kl_threshold={c.kl:.3f}"] * (c.kl > kl_threshold)
            + [f"induce_threshold={c.induce:.3f}"] * (c.induce < induce_threshold)
        )
        for c in near
    )
    raise NothingSurvives(
        f"none of {len(table)} candidates has kl <= {kl_threshold}, induce >= {induce_threshold} and layer < "
        f"{int(n_layers * (1 - prune_layer_fraction))}; nearest: {shown or 'no finite score'}"
    )


def reason(
    candidate: Candidate,
    *,
    n_layers: int,
    kl_threshold: float = 0.1,
    induce_threshold: float = 0.0,
    prune_layer_fraction: float = 0.2,
) -> str | None:
    """Why the rule drops a candidate; None when it keeps it."""
    if not _finite(candidate):
        return "not finite"
    if candidate.layer >= int(n_layers * (1 - prune_layer_fraction)):
        return "too late a layer"
    if candidate.kl > kl_threshold:
        return "kl too large"
    if candidate.induce < induce_threshold:
        return "induces too little"
    return None


def choose(
    model: ChatModel,
    candidates: Sequence[tuple[int, int]],
    directions: Mapping[tuple[int, int], Float[Tensor, " d_model"]],
    *,
    harmful: ChatTokens,
    harmless: ChatTokens,
    refusal_ids: Sequence[int],
    rules: Sequence[tuple[float, float]] = ((0.1, 0.0),),
    watch: Callable[[Iterable[tuple[int, int]]], Iterable[tuple[int, int]]] = iter,
) -> tuple[Candidate, list[dict[str, Any]], dict[str, Any]]:
    """Score candidates (position, layer) and pick one; what cannot win is not scored in full.

    One pass with a candidate ablated gives its bypass and its kl. Induce is measured only for candidates within the kl
    limit, in order of bypass, until one passes: that is the pick of the whole rule. When none passes, the next, looser
    rule is tried.

    Args:
        directions: (position, layer) → direction at its natural length.
        harmful: validation prompts that bypass is measured on.
        harmless: validation prompts that induce and kl are measured on.
        rules: (kl_threshold, induce_threshold), the published one first; later ones only when no candidate passes.
        watch: wraps the loop over candidates, for a progress bar.

    Returns:
        The pick, all candidates (induce is NaN where it was not needed), and the rule that admitted the pick.

    Raises:
        NothingSurvives: no candidate passes under any rule.
    """
    both, n_harmful = harmful.joined(harmless), len(harmful)
    base = next_token_log_probs(model, harmless)
    scores: dict[tuple[int, int], Candidate] = {}
    for position, layer in watch(candidates):
        ablate = Ablate(direction=directions[position, layer])
        log_probs = next_token_log_probs(model, both, interventions=[ablate])
        scores[position, layer] = Candidate(
            position=position,
            layer=layer,
            bypass=refusal_metric(log_probs[:n_harmful], refusal_ids).mean().item(),
            induce=math.nan,
            kl=kl_divergence(base, log_probs[n_harmful:]).mean().item(),
        )

    def passes(place: tuple[int, int], limits: Mapping[str, float]) -> bool:
        scored = scores[place]
        # Whether it would pass at the best possible induce, before any is measured.
        if reason(replace(scored, induce=sys.float_info.max), n_layers=model.n_layers, **limits) is not None:
            return False
        if math.isnan(scored.induce):
            add = Add(direction=directions[place], layers=(place[1],))
            induce = refusal_scores(model, harmless, refusal_ids, interventions=[add]).mean().item()
            scores[place] = scored = replace(scored, induce=induce)
        return reason(scored, n_layers=model.n_layers, **limits) is None

    # NaN has no order: it goes last, or it would leave the others unsorted.
    order = sorted(candidates, key=lambda c: (math.isnan(scores[c].bypass), scores[c].bypass, *c))
    for number, (kl, induce) in enumerate(rules):
        limits = {"kl_threshold": kl, "induce_threshold": induce}
        if any(passes(place, limits) for place in order):
            chosen = pick(scores.values(), n_layers=model.n_layers, **limits)
            cut = int(model.n_layers * 0.8)
            text = f"lowest bypass with induce >= {induce:g}, KL <= {kl:g} and layer < {cut}"
            rule = {"published": number == 0, **limits, "text": text}
            return chosen, [scores[place].as_dict() for place in candidates], rule
    kl, induce = rules[-1]
    for place in order:  # the near-misses that the error shows need all three scores
        passes(place, {"kl_threshold": math.inf, "induce_threshold": -math.inf})
    pick(scores.values(), n_layers=model.n_layers, kl_threshold=kl, induce_threshold=induce)
    raise AssertionError("pick finds nothing where nothing passes")


def _table(scores: Any) -> list[Candidate]:
    rows = (
        scores.to_dict("records")
        if hasattr(scores, "to_dict")
        else [r.as_dict() if isinstance(r, Candidate) else dict(r) for r in scores]
    )
    if not rows:
        raise ValueError("the table of candidates is empty")
    columns = ("position", "layer", "bypass", "induce", "kl")
    for number, row in enumerate(rows):
        if missing := [c for c in columns if c not in row]:
            raise ValueError(f"row {number} of the table has no {missing[0]}; it needs {', '.join(columns)}")
    return [
        Candidate(
            position=int(r["position"]),
            layer=int(r["layer"]),
            **{c: math.nan if r[c] is None else float(r[c]) for c in columns[2:]},
        )
        for r in rows
    ]


def _finite(candidate: Candidate) -> bool:
    return all(map(math.isfinite, (candidate.bypass, candidate.induce, candidate.kl)))
