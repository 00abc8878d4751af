"""Section 2.3 and appendix C: the pick among the candidates, how stable it is, and random directions as a control.

Scores and rule are those of `interp.representations.selection`; `interp.representations.sweeps` measures them.

Source: Arditi et al. 2024, arXiv:2406.11717; random directions and resampling are ours.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.prompts import PromptSet
from interp.directions import Direction, random_direction
from interp.experiments.refusal_direction import Config
from interp.experiments.refusal_direction.candidates import Candidates
from interp.experiments.refusal_direction.results import RandomControls, RandomScores, SelectionBaseline
from interp.representations.confirming import confirmation
from interp.representations.picks import choose, pick_stability, scored_candidates
from interp.representations.selection import Candidate, Confirmation, PickShare, RuleUsed, ScoredCandidate
from interp.representations.sweeps import Place, Sweep
from interp.storage.provenance import provenance
from interp.storage.stages import Stages


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The pick on the validation prompts."""

    selected: Candidate
    rule: RuleUsed
    candidates: tuple[ScoredCandidate, ...]
    stability: tuple[PickShare, ...]
    baseline: SelectionBaseline
    confirmation: Confirmation | None


def select(sweep: Sweep, config: Config, stages: Stages) -> Selection:
    """Lowest bypass among the candidates that pass the rule; of a model in `fast` the pick is proven with exact scores.

    Raises:
        NothingSurvives: no candidate passes; the message names the nearest misses.
    """
    selected, rule = choose(
        sweep, [config.rule], exhaustive=config.sweep == "exhaustive", progress=stages.progress
    )
    # Stability measures its contenders in full, so it comes before the table of scores is read.
    stability = pick_stability(sweep, rule, seed=config.seed)
    baseline = sweep.exact.baseline
    harmful, harmless = baseline[: sweep.n_harmful], baseline[sweep.n_harmful :]
    return Selection(
        selected=selected,
        rule=rule.used(sweep.model.n_layers),
        candidates=scored_candidates(sweep, rule),
        stability=stability,
        baseline=SelectionBaseline(harmful=harmful.mean().item(), harmless=harmless.mean().item()),
        confirmation=confirmation(sweep),
    )


def picked_direction(
    sweep: Sweep, selected: Candidate, candidates: Candidates, prompts: PromptSet, config: Config
) -> Direction:
    """The picked direction at its natural length, with where it comes from."""
    return Direction(
        vector=sweep.directions[selected.position, selected.layer],
        layer=selected.layer,
        position=str(selected.position),
        sign="refused harmful - answered harmless",
        mean_activation_norm=candidates.mean_norms[selected.layer, selected.position].item(),
        provenance=provenance(sweep.model.provenance, prompts.provenance, config),
    )


def random_controls(sweep: Sweep, direction: Direction, config: Config, stages: Stages) -> RandomControls:
    """Random directions of equal norm through the three scores; induce at every few layers."""
    position = int(direction.position)
    layers = tuple(range(0, sweep.model.n_layers, config.random_every))
    norms = {layer: sweep.directions[position, layer].norm() for layer in layers}
    names = [f"random-{i}{position}-{direction.layer}" for i in range(config.n_random)]
    stored = [None if stages.cache is None else stages.cache.whole(name, RandomScores) for name in names]
    vectors = {
        name: _Random(seed, random_direction(direction.vector, seed=seed), norms)
        for name, seed, scores in zip(
            names, range(config.seed, config.seed + len(names)), stored, strict=True
        )
        if scores is None
    }
    if sweep.pool is None:
        computed = (_random_scores(sweep, vector) for vector in vectors.values())
    else:
        computed = sweep.pool.in_order(_random_scores, vectors.values())
    for name in stages.progress(vectors, "random directions"):
        scores = next(computed)
        stored[names.index(name)] = stages.keep(name, lambda scores=scores: scores, RandomScores)
    return RandomControls(layers=layers, directions=tuple(scores for scores in stored if scores is not None))


class _Random(NamedTuple):
    """A random direction, and the norm that it is added with at each layer."""

    seed: int
    vector: Float[Tensor, " d_model"]
    norms: Mapping[int, Tensor]


def _random_scores(sweep: Sweep, random: _Random) -> RandomScores:
    ablated, unit = sweep.ablate(random.vector), random.vector / random.vector.norm()
    return RandomScores(
        seed=random.seed,
        bypass=ablated[: sweep.n_harmful].mean().item(),
        kl=ablated[sweep.n_harmful :].mean().item(),
        induce=tuple(sweep.add(unit * norm, layer).mean().item() for layer, norm in random.norms.items()),
    )


def score_tensors(sweep: Sweep) -> dict[str, Tensor]:
    """What a run keeps: `mean_diffs` [position, layer, d_model], and each score of every prompt [candidate, prompt]."""
    positions = sorted({position for position, _ in sweep.directions})
    return {
        "mean_diffs": torch.stack(
            [
                torch.stack([sweep.directions[position, layer] for layer in range(sweep.model.n_layers)])
                for position in positions
            ]
        ),
        "bypass": _measured(sweep, lambda each: each.ablated, range(sweep.n_harmful)),
        "kl": _measured(
            sweep, lambda each: each.ablated, range(sweep.n_harmful, sweep.n_harmful + sweep.n_harmless)
        ),
        "induce": _measured(sweep, lambda each: each.induced, range(sweep.n_harmless)),
    }


def _measured(
    sweep: Sweep, scores_of: Callable[[Sweep], Mapping[Place, Tensor]], rows: range
) -> Float[Tensor, "candidate prompt"]:
    """Scores on these rows of every candidate; NaN where not measured."""
    table = torch.full((len(sweep.directions), len(rows)), torch.nan)
    for i, place in enumerate(sweep.directions):
        if place in (scores := scores_of(sweep.final(place))):
            values = scores[place][rows.start : rows.stop]
            table[i] = torch.where(values.isinf(), torch.nan, values)
    return table
