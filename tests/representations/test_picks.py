"""Leaving out what cannot win never changes the pick, and how often each candidate is picked."""

import math
import re
from collections import Counter
from typing import Any

import pytest
import torch

from interp.models.chat_model import ChatModel
from interp.representations.picks import choose, pick_stability, scored_candidates
from interp.representations.selection import Candidate, NothingSurvives, PickShare, Rule, pick
from tests.representations.sweep_cases import HARMLESS, OPEN, sweep_of


def limits_that_decide(published: list[Candidate]) -> tuple[Rule, Candidate]:
    """Limits that drop the two candidates of lowest bypass that the layer cut leaves, and keep some other."""
    early = sorted((row for row in published if row.layer < 2), key=lambda row: row.bypass)
    for kl in sorted(row.kl for row in early):
        for induce in sorted(row.induce for row in early):
            rule = Rule(kl_threshold=kl + 1e-3, induce_threshold=induce - 1e-3)
            kept = [r for r in early if r.kl <= rule.kl_threshold and r.induce >= rule.induce_threshold]
            if kept and not any(row in kept for row in early[:2]):
                return rule, kept[0]
    raise AssertionError("no such limits; change the seed")


@pytest.mark.parametrize("exhaustive", [True, False])
def test_choosing_finds_the_pick_of_the_full_table(
    tiny: ChatModel, published: list[Candidate], exhaustive: bool
) -> None:
    rule, expected = limits_that_decide(published)
    sweep = sweep_of(tiny)
    found, admitted = choose(sweep, [rule], exhaustive=exhaustive)
    assert (found.position, found.layer) == (expected.position, expected.layer)
    assert admitted == rule
    table = scored_candidates(sweep, rule)
    kept = [row for row in table if row.kept]
    assert (found.position, found.layer) in {(row.position, row.layer) for row in kept}
    missing = [row for row in table if math.isnan(row.bypass + row.induce + row.kl)]
    assert bool(missing) != exhaustive  # what cannot win was not measured
    assert found.bypass == min(row.bypass for row in kept)
    for row in table:
        assert row.kept == (row.reason is None)
        full = next(r for r in published if (r.position, r.layer) == (row.position, row.layer))
        passes = full.kl <= rule.kl_threshold and full.induce >= rule.induce_threshold
        assert row.kept == (passes and row.layer < 2)


def test_kl_is_given_up_early_only_when_the_rest_cannot_mend_it(tiny: ChatModel) -> None:
    sweep = sweep_of(tiny)
    for place in sweep.directions:
        mean = sweep.kl(place).mean().item()
        for limit in (mean * 0.2, mean * 0.9, mean * 1.1 + 1e-4):
            fresh = sweep_of(tiny)
            possible = fresh.kl_may_be_within(place, limit)
            assert fresh.kl_lower_bound(place) <= mean + 1e-9
            if mean <= limit:
                assert possible  # never given up wrongly
    place = max(sweep.directions, key=lambda p: sweep.kl(p).mean().item() if p[1] < 2 else 0.0)
    fresh = sweep_of(tiny)
    assert not fresh.kl_may_be_within(place, 1e-3)
    assert (fresh.ablated[place][5:] == math.inf).sum() == len(HARMLESS) - 8  # the rest was not run
    row = next(r for r in scored_candidates(fresh, Rule(kl_threshold=1e-3)) if (r.position, r.layer) == place)
    assert row.kept is False
    assert "on the first 8 prompts settles it" in row.reason


def test_the_next_rule_is_taken_when_nothing_passes(tiny: ChatModel, published: list[Candidate]) -> None:
    rule, expected = limits_that_decide(published)
    impossible = Rule(kl_threshold=-1.0)
    found, admitted = choose(sweep_of(tiny), [impossible, rule, OPEN])
    assert (found.position, found.layer) == (expected.position, expected.layer)
    assert admitted == rule
    assert not admitted.published
    assert (
        rule.text(3)
        == f"lowest bypass with induce >= {rule.induce_threshold:g}, KL <= {rule.kl_threshold:g} and layer < 2"
    )
    sweep = sweep_of(tiny)
    with pytest.raises(
        NothingSurvives, match=r"none of 9 candidates has kl <= -1\.0, .*needs kl_threshold="
    ) as caught:
        choose(sweep, [impossible])
    assert str(caught.value).count("needs") == 3
    # The near misses are those of the full table, and finding them does not take the full table.
    with pytest.raises(NothingSurvives) as full:
        choose(sweep_of(tiny), [impossible], exhaustive=True)
    assert round_scores(caught) == round_scores(full)
    strict = sweep_of(tiny)
    with pytest.raises(NothingSurvives):
        choose(strict, [Rule(kl_threshold=-1.0, induce_threshold=-100.0)])
    assert sum(math.isnan(strict.candidate(p).induce) for p in strict.directions if p[1] < 2) > 0


def round_scores(caught: Any) -> list[str]:
    """Places and options of an error's near misses, without the last digits of their scores."""
    return re.findall(
        r"position -\d layer \d|kl_threshold=[\d.]{4}|induce_threshold=-?[\d.]{4}", str(caught.value)
    )


def test_near_misses_are_ordered_by_what_they_lack(tiny: ChatModel, published: list[Candidate]) -> None:
    rule = Rule(kl_threshold=0.05, induce_threshold=0.0)
    early = [row for row in published if row.layer < 2]
    lacking = sorted(early, key=lambda r: max(0.0, r.kl - 0.05) + max(0.0, -r.induce))
    with pytest.raises(NothingSurvives) as caught:
        choose(sweep_of(tiny), [rule])
    named = re.findall(r"position (-\d) layer (\d)", str(caught.value))
    found = [(int(p), int(layer)) for p, layer in named]
    amounts = {(r.position, r.layer): max(0.0, r.kl - 0.05) + max(0.0, -r.induce) for r in published}
    expected = [amounts[r.position, r.layer] for r in lacking[:3]]
    assert [amounts[place] for place in found] == pytest.approx(expected, abs=1e-3)


def test_a_candidate_that_is_not_a_number_does_not_disturb_the_order(
    tiny: ChatModel, published: list[Candidate]
) -> None:
    best = pick(published, n_layers=3, kl_threshold=math.inf, induce_threshold=-math.inf)
    sweep = sweep_of(tiny)
    broken = next(p for p in sweep.directions if p[1] == 1 and p != (best.position, best.layer))
    sweep.directions[broken] = sweep.directions[broken] * math.nan
    found, _ = choose(sweep, [OPEN])
    assert (found.position, found.layer) == (best.position, best.layer)
    row = next(r for r in scored_candidates(sweep, OPEN) if (r.position, r.layer) == broken)
    assert (row.kept, row.reason) == (False, "not finite")


def test_stability_counts_picks_over_resampled_prompts(tiny: ChatModel) -> None:
    sweep = sweep_of(tiny)
    chosen, rule = choose(sweep, [OPEN], exhaustive=True)
    shares = pick_stability(sweep, rule, resamples=400)
    assert sum(row.share for row in shares) == pytest.approx(1.0)
    top = {(row.position, row.layer): row.share for row in shares}
    assert (chosen.position, chosen.layer) in top
    # Oracle: the rule itself, applied to each draw.
    generator = torch.Generator().manual_seed(0)
    harmful = torch.randint(5, (400, 5), generator=generator)
    harmless = torch.randint(len(HARMLESS), (400, len(HARMLESS)), generator=generator)
    counts: Counter[tuple[int, int]] = Counter()
    for a, b in zip(harmful, harmless, strict=True):
        table = [
            {
                "position": p,
                "layer": layer,
                "bypass": sweep.bypass((p, layer))[a].mean().item(),
                "induce": sweep.induce((p, layer))[b].mean().item(),
                "kl": sweep.kl((p, layer))[b].mean().item(),
            }
            for p, layer in sweep.directions
        ]
        found = pick(table, n_layers=3, kl_threshold=math.inf, induce_threshold=-math.inf)
        counts[found.position, found.layer] += 1
    assert {place: count / 400 for place, count in counts.items()} == top
    never = pick_stability(sweep, Rule(kl_threshold=-1.0), resamples=10)
    assert never == (PickShare(position=None, layer=None, share=1.0),)
