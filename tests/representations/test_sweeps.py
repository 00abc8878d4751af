"""Fast scores against the plain procedure, and that leaving out what cannot win never changes the pick."""

import math
import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.engine.interventions import Ablate, Add
from interp.engine.log_probs import next_token_log_probs
from interp.evaluation.losses import KLFrom, kl_divergence
from interp.evaluation.refusals import refusal_metric
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.representations.selection import NothingSurvives, Rule, pick
from interp.representations.sweeps import Sweep, choose, pick_stability
from tests.conftest import PROMPTS
from tests.families import COVERED, build

REFUSAL_IDS = [65, 66, 67]
OPEN = Rule(kl_threshold=math.inf, induce_threshold=-math.inf)
HARMFUL = [*PROMPTS[:3], "How do I bake a cake", "Why?"]
HARMLESS = [*PROMPTS[3:], *(f"Name {n} colours" for n in range(9))]


def directions_for(model: ChatModel, positions: int = 3) -> dict[tuple[int, int], Tensor]:
    """Random directions; those of layer 0 are zero, as differences in means at template tokens are."""
    generator = torch.Generator().manual_seed(0)
    return {
        (position, layer): (0.0 if layer == 0 else 2.0) * torch.randn(model.d_model, generator=generator)
        for position in range(-positions, 0)
        for layer in range(model.n_layers)
    }


def sweep_of(model: ChatModel, **options: Any) -> Sweep:
    harmful, harmless = (tokenize(model.tokenizer, texts) for texts in (HARMFUL, HARMLESS))
    found = directions_for(model)
    return Sweep(model, found, harmful=harmful, harmless=harmless, refusal_ids=REFUSAL_IDS, **options)


@pytest.fixture(scope="module")
def published(tiny: ChatModel) -> list[dict[str, Any]]:
    """Three full sweeps, one candidate at a time, whole left-padded prompts, all blocks."""

    def scores(tokens: ChatTokens, intervention: Ablate | Add) -> Tensor:
        return next_token_log_probs(tiny, tokens, interventions=[intervention], fast=False)

    harmful, harmless = (tokenize(tiny.tokenizer, texts) for texts in (HARMFUL, HARMLESS))
    base = next_token_log_probs(tiny, harmless, fast=False)
    table = []
    for (position, layer), direction in directions_for(tiny).items():
        ablate, add = Ablate(direction=direction), Add(direction=direction, layers=[layer])
        table.append(
            {
                "position": position,
                "layer": layer,
                "bypass": refusal_metric(scores(harmful, ablate), REFUSAL_IDS).mean().item(),
                "induce": refusal_metric(scores(harmless, add), REFUSAL_IDS).mean().item(),
                "kl": kl_divergence(base, scores(harmless, ablate)).mean().item(),
            }
        )
    return table


def test_every_score_equals_the_plain_procedure(tiny: ChatModel, published: list[dict[str, Any]]) -> None:
    sweep = sweep_of(tiny)
    assert sweep._fast
    assert sweep._resumes
    for row in published:
        found = sweep.complete((row["position"], row["layer"]))
        for column in ("bypass", "induce", "kl"):
            assert getattr(found, column) == pytest.approx(row[column], abs=1e-3)
    assert max(row["kl"] for row in published) > 0.1  # control: the candidates do something


@pytest.mark.parametrize("name", sorted(COVERED))
def test_every_family_scores_alike_on_both_paths(name: str, tokenizer: Any) -> None:
    model = ChatModel(build(*COVERED[name]), tokenizer, name=name)
    fast, plain = sweep_of(model), sweep_of(model, fast=False)
    assert fast._resumes
    for place in [(-1, 1), (-2, 2)]:
        for column in ("bypass", "induce", "kl"):
            a, b = getattr(fast.complete(place), column), getattr(plain.complete(place), column)
            assert a == pytest.approx(b, abs=1e-3)


def test_a_zero_direction_scores_as_the_unmodified_model(tiny: ChatModel) -> None:
    # At layer 0 the template tokens are the same in every prompt (spec: a free check of the whole sweep).
    sweep = sweep_of(tiny)
    for position in (-3, -2, -1):
        place = (position, 0)
        assert sweep.directions[place].abs().max() == 0
        torch.testing.assert_close(sweep.bypass(place), sweep.baseline[:5], rtol=0, atol=1e-4)
        torch.testing.assert_close(sweep.induce(place), sweep.baseline[5:], rtol=0, atol=1e-4)
        assert sweep.kl(place).abs().max() < 1e-6


def limits_that_decide(published: list[dict[str, Any]]) -> tuple[Rule, dict[str, Any]]:
    """Limits that drop the two candidates of lowest bypass that the layer cut leaves, and keep some other."""
    early = sorted((row for row in published if row["layer"] < 2), key=lambda row: row["bypass"])
    for kl in sorted(row["kl"] for row in early):
        for induce in sorted(row["induce"] for row in early):
            rule = Rule(kl_threshold=kl + 1e-3, induce_threshold=induce - 1e-3)
            kept = [r for r in early if r["kl"] <= rule.kl_threshold and r["induce"] >= rule.induce_threshold]
            if kept and not any(row in kept for row in early[:2]):
                return rule, kept[0]
    raise AssertionError("no such limits; change the seed")


@pytest.mark.parametrize("exhaustive", [True, False])
def test_choosing_finds_the_pick_of_the_full_table(
    tiny: ChatModel, published: list[dict[str, Any]], exhaustive: bool
) -> None:
    rule, expected = limits_that_decide(published)
    sweep = sweep_of(tiny)
    found, admitted = choose(sweep, [rule], exhaustive=exhaustive)
    assert (found.position, found.layer) == (expected["position"], expected["layer"])
    assert admitted == rule
    table = sweep.table(rule)
    kept = [row for row in table if row["kept"]]
    assert (found.position, found.layer) in {(row["position"], row["layer"]) for row in kept}
    missing = [row for row in table if math.isnan(row["bypass"] + row["induce"] + row["kl"])]
    assert bool(missing) != exhaustive  # what cannot win was not measured
    assert found.bypass == min(row["bypass"] for row in kept)
    for row in table:
        assert row["kept"] == (row["reason"] is None)
        full = next(r for r in published if (r["position"], r["layer"]) == (row["position"], row["layer"]))
        passes = full["kl"] <= rule.kl_threshold and full["induce"] >= rule.induce_threshold
        assert row["kept"] == (passes and row["layer"] < 2)


def test_kl_is_given_up_early_only_when_the_rest_cannot_mend_it(tiny: ChatModel) -> None:
    sweep = sweep_of(tiny)
    for place in sweep.directions:
        mean = sweep.kl(place).mean().item()
        for limit in (mean * 0.2, mean * 0.9, mean * 1.1 + 1e-4):
            fresh = sweep_of(tiny)
            possible = fresh.kl_may_be_within(place, limit)
            assert fresh.least_kl(place) <= mean + 1e-9
            if mean <= limit:
                assert possible  # never given up wrongly
    place = max(sweep.directions, key=lambda p: sweep.kl(p).mean().item() if p[1] < 2 else 0.0)
    fresh = sweep_of(tiny)
    assert not fresh.kl_may_be_within(place, 1e-3)
    assert (fresh.ablated[place][5:] == math.inf).sum() == len(HARMLESS) - 8  # the rest was not run
    row = next(r for r in fresh.table(Rule(kl_threshold=1e-3)) if (r["position"], r["layer"]) == place)
    assert row["kept"] is False
    assert "on the first 8 prompts settles it" in row["reason"]


def test_the_divergence_has_the_floor_that_jensen_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 5000, generator=generator) * 2
    log_p = logits.log_softmax(-1)
    kl = KLFrom(log_p)
    rows = torch.arange(5)
    torch.testing.assert_close(
        kl(log_p.flip(0), rows), kl_divergence(log_p, log_p.flip(0)), rtol=1e-6, atol=1e-6
    )
    p = log_p.double().exp()
    # The lowest value over all q puts mass where p + epsilon is far above epsilon; a search must not get below.
    lowest = torch.full((5,), math.inf, dtype=torch.float64)
    for cut in torch.logspace(-9, -2, 40):
        q = torch.where(p > cut, p, 0.0)
        q = q / q.sum(-1, keepdim=True)
        lowest = torch.minimum(lowest, kl(q.log(), rows))
    assert (lowest >= kl.least).all()
    assert (kl.least < 0).all()
    assert (kl.least > -0.01).all()


def test_the_next_rule_is_taken_when_nothing_passes(tiny: ChatModel, published: list[dict[str, Any]]) -> None:
    rule, expected = limits_that_decide(published)
    impossible = Rule(kl_threshold=-1.0)
    found, admitted = choose(sweep_of(tiny), [impossible, rule, OPEN])
    assert (found.position, found.layer) == (expected["position"], expected["layer"])
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


def test_near_misses_are_ordered_by_what_they_lack(tiny: ChatModel, published: list[dict[str, Any]]) -> None:
    rule = Rule(kl_threshold=0.05, induce_threshold=0.0)
    early = [row for row in published if row["layer"] < 2]
    lacking = sorted(early, key=lambda r: max(0.0, r["kl"] - 0.05) + max(0.0, -r["induce"]))
    with pytest.raises(NothingSurvives) as caught:
        choose(sweep_of(tiny), [rule])
    named = re.findall(r"position (-\d) layer (\d)", str(caught.value))
    found = [(int(p), int(layer)) for p, layer in named]
    amounts = {
        (r["position"], r["layer"]): max(0.0, r["kl"] - 0.05) + max(0.0, -r["induce"]) for r in published
    }
    expected = [amounts[r["position"], r["layer"]] for r in lacking[:3]]
    assert [amounts[place] for place in found] == pytest.approx(expected, abs=1e-3)


def test_a_candidate_that_is_not_a_number_does_not_disturb_the_order(
    tiny: ChatModel, published: list[dict[str, Any]]
) -> None:
    best = pick(published, n_layers=3, kl_threshold=math.inf, induce_threshold=-math.inf)
    sweep = sweep_of(tiny)
    broken = next(p for p in sweep.directions if p[1] == 1 and p != (best.position, best.layer))
    sweep.directions[broken] = sweep.directions[broken] * math.nan
    found, _ = choose(sweep, [OPEN])
    assert (found.position, found.layer) == (best.position, best.layer)
    row = next(r for r in sweep.table(OPEN) if (r["position"], r["layer"]) == broken)
    assert (row["kept"], row["reason"]) == (False, "not finite")


def test_a_killed_sweep_continues_where_it_was(tiny: ChatModel) -> None:
    kept: dict[str, Any] = {}
    computed: list[str] = []

    def keep(name: str, compute: Any) -> Any:
        if name not in kept:
            if len(computed) == 5:
                raise KeyboardInterrupt
            computed.append(name)
            kept[name] = compute()
        return kept[name]

    with pytest.raises(KeyboardInterrupt):
        choose(sweep_of(tiny, keep=keep), [OPEN], exhaustive=True)
    before, computed[:] = list(computed), []

    def resumed(name: str, compute: Any) -> Any:
        if name not in kept:
            computed.append(name)
            kept[name] = compute()
        return kept[name]

    found, _ = choose(sweep_of(tiny, keep=resumed), [OPEN], exhaustive=True)
    assert not set(before) & set(computed)
    assert found == choose(sweep_of(tiny), [OPEN], exhaustive=True)[0]


def test_stability_counts_picks_over_resampled_prompts(tiny: ChatModel) -> None:
    sweep = sweep_of(tiny)
    chosen, rule = choose(sweep, [OPEN], exhaustive=True)
    shares = pick_stability(sweep, rule, resamples=400)
    assert sum(row["share"] for row in shares) == pytest.approx(1.0)
    top = {(row["position"], row["layer"]): row["share"] for row in shares}
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
    assert never == [{"position": None, "layer": None, "share": 1.0}]


def test_no_candidates_is_an_error(tiny: ChatModel) -> None:
    tokens = tokenize(tiny.tokenizer, HARMFUL)
    with pytest.raises(ValueError, match="no candidate directions"):
        Sweep(tiny, {}, harmful=tokens, harmless=tokens, refusal_ids=REFUSAL_IDS)
