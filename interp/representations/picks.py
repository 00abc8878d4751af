"""Picking a direction from a sweep, measuring no more than the rule needs, and the stability of the pick.

Candidates that cannot be picked are not measured further. A candidate is dropped as soon as its kl provably exceeds the
limit: after a few prompts, since the others can lower the sum by no more than a lower bound that follows from Jensen's
inequality and the epsilon in the published formula. Induce, which decides most often, is measured next; the kl of the
remaining prompts and then bypass only for candidates that pass it. The pick equals that of the full table, which
`exhaustive=True` measures. A model of precision `fast` is only screened so: its pick is proven with exact products
(`interp.representations.confirming`), and has their scores.

Source of the rule: Arditi et al. 2024, arXiv:2406.11717, section 2.3 and appendix C.

    candidate, rule = choose(sweep, [Rule(), Rule(kl_threshold=1.0)])
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from interp.representations.confirming import (
    before_layer_cut,
    confirm,
    confirmed_pick,
    shortfall,
)
from interp.representations.selection import Candidate, PickShare, Rule, ScoredCandidate, pick
from interp.representations.shared_sweeps import Progress, score_each
from interp.representations.sweeps import FIRST_PROMPTS, Place, Sweep


def choose(
    sweep: Sweep,
    rules: Sequence[Rule] = (Rule(),),
    *,
    exhaustive: bool = False,
    progress: Progress = lambda places, _label: places,
) -> tuple[Candidate, Rule]:
    """The pick and the rule that admitted it: the first rule under which a candidate passes.

    The pick and its scores are exact also for a model in `fast`.

    Args:
        rules: the published one first; later ones only when no candidate passes.
        exhaustive: measure every score of every candidate.

    Raises:
        NothingSurvives: no candidate passes under any rule; the message names the nearest misses.
    """
    if exhaustive:
        score_each(sweep, Sweep.complete, sweep.directions, progress, "scoring candidates")
    find = _first_that_passes if sweep.model.precision == "exact" else confirmed_pick
    for rule in rules:
        if picked := find(sweep, rule, progress):
            return picked, rule
    last = rules[-1]
    for place in _score_near_misses(sweep, last, progress):
        if sweep.model.precision == "fast":
            confirm(sweep, place)
    pick(
        [sweep.final(place).candidate(place) for place in sweep.directions],
        n_layers=sweep.model.n_layers,
        kl_threshold=last.kl_threshold,
        induce_threshold=last.induce_threshold,
        prune_layer_fraction=last.prune_layer_fraction,
    )
    raise AssertionError("pick finds nothing where nothing passes")


def _first_that_passes(sweep: Sweep, rule: Rule, progress: Progress) -> Candidate | None:
    """The pick under one rule; None where no candidate passes."""
    early, limit = before_layer_cut(sweep, rule), rule.kl_threshold
    score_each(sweep, partial(Sweep.kl_may_be_within, limit=limit), early, progress, "KL of candidates")
    possible = [place for place in early if sweep.kl_may_be_within(place, limit)]
    score_each(sweep, Sweep.induce, possible, progress, "induce of candidates")
    # NaN compares false: such a candidate is dropped here, as the rule drops it.
    inducing = [place for place in possible if sweep.induce(place).mean().item() >= rule.induce_threshold]
    score_each(sweep, partial(_bypass_within, limit=limit), inducing, progress, "bypass of candidates")
    scored = [sweep.candidate(place) for place in inducing]
    passing = [c for c in scored if rule.reason(c, n_layers=sweep.model.n_layers) is None]
    return min(passing, key=lambda c: (c.bypass, c.position, c.layer)) if passing else None


def _bypass_within(sweep: Sweep, place: Place, limit: float) -> None:
    """Measure the kl of a candidate, and where it is within the limit its bypass."""
    if sweep.kl(place).mean() <= limit:
        sweep.bypass(place)


def _score_near_misses(sweep: Sweep, rule: Rule, progress: Progress, *, n: int = 3) -> list[Place]:
    """Measure in full the n candidates with the smallest shortfall, best first, until no other can be smaller."""
    bounds = {place: shortfall(sweep, place, rule) for place in before_layer_cut(sweep, rule)}
    misses: list[tuple[float, Place]] = []
    for place in progress(sorted(bounds, key=lambda p: (bounds[p], *p)), "nothing passes: near misses"):
        if len(misses) >= n and bounds[place] > misses[n - 1][0]:
            break
        sweep.kl(place)
        sweep.induce(place)
        miss = shortfall(sweep, place, rule)
        if math.isfinite(miss):
            misses = sorted([*misses, (miss, place)])
    for _, place in misses[:n]:
        sweep.complete(place)
    return [place for _, place in misses[:n]]


def scored_candidates(sweep: Sweep, rule: Rule) -> tuple[ScoredCandidate, ...]:
    """Every candidate of a sweep with its scores, NaN where not measured, and why the rule drops it.

    Of a model in `fast` those that `confirming` scored again have their exact scores, the others rounded ones.
    """
    rows = []
    for place in sweep.directions:
        measured = sweep.final(place)
        scored = measured.candidate(place)
        why = _reason(measured, place, scored, rule)
        rows.append(
            ScoredCandidate(
                position=scored.position,
                layer=scored.layer,
                bypass=scored.bypass,
                induce=scored.induce,
                kl=scored.kl,
                kept=why is None,
                reason=why,
            )
        )
    return tuple(rows)


def _reason(sweep: Sweep, place: Place, scored: Candidate, rule: Rule) -> str | None:
    """Why the rule drops a candidate, from the scores measured so far."""
    if place[1] >= rule.first_late_layer(sweep.model.n_layers):
        return "too late a layer"
    if any(bool(table[place].isnan().any()) for table in (sweep.ablated, sweep.induced) if place in table):
        return "not finite"
    if scored.induce < rule.induce_threshold:
        return "induces too little"
    if place in sweep.ablated and math.isnan(scored.kl):
        first = sweep.ablated[place][sweep.n_harmful : sweep.n_harmful + FIRST_PROMPTS].mean()
        return f"kl too large (mean {first:.2f} on the first {FIRST_PROMPTS} prompts settles it)"
    if scored.kl > rule.kl_threshold:
        return "kl too large"  # before the rule uses bypass, which has not been measured
    return rule.reason(scored, n_layers=sweep.model.n_layers)


def pick_stability(
    sweep: Sweep, rule: Rule, *, contenders: int = 12, resamples: int = 2000, seed: int = 0
) -> tuple[PickShare, ...]:
    """How often each candidate is picked when the validation prompts are resampled with replacement.

    Near-ties swap between resamples, as they would between runs. Only fully measured candidates take part: all of them
    after an exhaustive sweep, otherwise those that pass and the `contenders` nearest to passing, which are completed
    here. Scores of a model in `fast` are its rounded ones, of all candidates alike.

    Returns:
        Every candidate picked at least once, most frequent first; position None counts the resamples in which no
        candidate passes.
    """
    early = before_layer_cut(sweep, rule)
    near = [p for p in early if p in sweep.induced and sweep.kl_lower_bound(p) <= 2 * rule.kl_threshold]
    nearest = sorted(near, key=lambda p: (shortfall(sweep, p, rule), *p))[:contenders]
    score_each(sweep, Sweep.complete, nearest, lambda places, _label: places, "contenders")
    full = sorted(p for p in early if _measured(sweep.candidate(p)))  # ties: lower position, then layer
    generator = torch.Generator().manual_seed(seed)

    def means(scores: list[Tensor], draws: Tensor) -> Tensor:
        return torch.stack([s[draws].mean(1) for s in scores], dim=1)

    harmful = torch.randint(sweep.n_harmful, (resamples, sweep.n_harmful), generator=generator)
    harmless = torch.randint(sweep.n_harmless, (resamples, sweep.n_harmless), generator=generator)
    bypass = means([sweep.bypass(p) for p in full], harmful)
    passes = (means([sweep.kl(p) for p in full], harmless) <= rule.kl_threshold) & (
        means([sweep.induce(p) for p in full], harmless) >= rule.induce_threshold
    )
    best = torch.where(passes, bypass, math.inf).min(1)
    counts: dict[Place | None, int] = {}
    for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        key = full[index] if value < math.inf else None
        counts[key] = counts.get(key, 0) + 1
    return tuple(
        PickShare(
            position=place[0] if place else None,
            layer=place[1] if place else None,
            share=count / resamples,
        )
        for place, count in sorted(counts.items(), key=lambda item: -item[1])
    )


def _measured(candidate: Candidate) -> bool:
    return all(map(math.isfinite, (candidate.bypass, candidate.kl, candidate.induce)))
