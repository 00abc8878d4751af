"""A pick screened with rounded products and proven with exact ones.

A model of precision `fast` scores every candidate with its rounded products. Candidates are then scored again in
float32, in the order of their rounded bypass, and the difference between both is taken for each of the three scores:
absolute, a mean over prompts, which cannot cancel as that of two means can, and the largest of all candidates scored
twice. A candidate needs no second look once its rounded scores cannot win by any difference up to `MARGIN` times the
largest one: its kl lies that far above the limit, or its induce that far below, or its bypass that far above the best
exact one. The limits move as differences grow, and at least `MIN_CONFIRMED` candidates that are not zero are scored
twice.

So the pick and its scores are those of float32. That no other candidate wins rests on differences that were measured on
some candidates, those nearest to being picked: it is no bound from arithmetic. `Confirmation` says what was measured.

    candidate = confirmed_pick(sweep, Rule())
    confirmation(sweep)                     # Confirmation(screened=180, confirmed=5, bypass=0.03, …)
"""

import math
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from interp.representations.selection import Candidate, Confirmation, Rule
from interp.representations.shared_sweeps import Progress, score_each
from interp.representations.sweeps import Place, Sweep

MARGIN = 3.0
"""A difference that was not measured is taken to be at most this many times the largest one that was."""
MIN_CONFIRMED = 4
"""Candidates on which the differences are measured at least."""


class Slack(NamedTuple):
    """How far each rounded score may be from its exact value, in nats."""

    bypass: float
    """Of bypass."""
    induce: float
    """Of induce."""
    kl: float
    """Of kl."""


def before_layer_cut(sweep: Sweep, rule: Rule) -> list[Place]:
    """Candidates of the layers that the rule does not exclude."""
    cut = rule.first_late_layer(sweep.model.n_layers)
    return [place for place in sweep.directions if place[1] < cut]


def shortfall(sweep: Sweep, place: Place, rule: Rule) -> float:
    """Lower bound on a candidate's distance from the kl and induce limits, in nats, from what has been measured so far.

    Exact once both are measured; infinite for scores that are not a number, which no limit admits.
    """
    nats = max(sweep.kl_lower_bound(place) - rule.kl_threshold, 0.0)
    if place in sweep.induced:
        nats += max(rule.induce_threshold - sweep.induced[place].mean().item(), 0.0)
    return math.inf if math.isnan(nats) else nats


def confirmed_pick(
    sweep: Sweep, rule: Rule, progress: Progress = lambda places, _label: places
) -> Candidate | None:
    """The exact pick under one rule, with its exact scores; None where no candidate passes."""
    places = before_layer_cut(sweep, rule)
    screen = partial(lowest_bypass, rule=rule, allowed=slack(sweep))
    score_each(sweep, screen, places, progress, "screening candidates")
    while True:
        best = _best_confirmed(sweep, rule, places)
        limit = math.inf if best is None else best.bypass
        now = slack(sweep)
        waiting = {
            place: lowest_bypass(sweep, place, rule, now) for place in places if place not in sweep.confirmed
        }
        able = [place for place, bound in waiting.items() if bound < math.inf and bound <= limit]
        if able:
            confirm(sweep, min(able, key=lambda p: (waiting[p], *p)))
            continue
        telling = [place for place in waiting if sweep.directions[place].any()]
        if not telling or n_telling(sweep) >= MIN_CONFIRMED:
            return best
        confirm(sweep, min(telling, key=lambda p: (waiting[p], shortfall(sweep, p, rule), *p)))


def confirm(sweep: Sweep, place: Place) -> None:
    """Measure all scores of a candidate with rounded and with exact products."""
    sweep.complete(place)
    sweep.exact.complete(place)
    sweep.confirmed.add(place)


def lowest_bypass(sweep: Sweep, place: Place, rule: Rule, allowed: Slack) -> float:
    """Lower bound on a candidate's exact bypass; infinite where the rule must drop it for its kl or induce.

    What the bound needs is measured, cheapest first. A rounded score that is not a number bounds nothing.
    """
    limit = rule.kl_threshold + allowed.kl
    if not sweep.kl_may_be_within(place, limit) and not math.isnan(sweep.kl_lower_bound(place)):
        return math.inf
    induce = sweep.induce(place).mean().item()
    if induce < rule.induce_threshold - allowed.induce:
        return math.inf
    kl = sweep.kl(place).mean().item()
    if kl > limit:
        return math.inf
    bypass = sweep.bypass(place).mean().item()
    return -math.inf if any(map(math.isnan, (induce, kl, bypass))) else bypass - allowed.bypass


def slack(sweep: Sweep) -> Slack:
    """`MARGIN` times the largest difference of each score over the confirmed candidates; 0 before the first."""
    return Slack(*(MARGIN * difference for difference in _differences(sweep)))


def _differences(sweep: Sweep) -> Slack:
    """Mean over prompts of the absolute difference of each score, the largest of the confirmed candidates."""
    n, largest = sweep.n_harmful, [0.0, 0.0, 0.0]
    for place in sweep.confirmed:
        ablated = (sweep.ablated[place] - sweep.exact.ablated[place]).abs()
        induced = (sweep.induced[place] - sweep.exact.induced[place]).abs()
        for number, gaps in enumerate((ablated[:n], induced, ablated[n:])):
            mean = gaps.mean().item()
            if math.isfinite(mean):
                largest[number] = max(largest[number], mean)
    return Slack(*largest)


def n_telling(sweep: Sweep) -> int:
    """Confirmed candidates that differences can be measured on; the rounding of a zero direction is the model's own."""
    return sum(bool(sweep.directions[place].any()) for place in sweep.confirmed)


def _best_confirmed(sweep: Sweep, rule: Rule, places: Iterable[Place]) -> Candidate | None:
    scored = [sweep.exact.candidate(place) for place in places if place in sweep.confirmed]
    passing = [c for c in scored if rule.reason(c, n_layers=sweep.model.n_layers) is None]
    return min(passing, key=lambda c: (c.bypass, c.position, c.layer)) if passing else None


def confirmation(sweep: Sweep) -> Confirmation | None:
    """What a pick in `fast` rests on; None for a sweep with exact products."""
    if sweep.model.precision == "exact":
        return None
    return Confirmation(
        screened=len(sweep.directions),
        confirmed=len(sweep.confirmed),
        margin=MARGIN,
        **_differences(sweep)._asdict(),
    )
