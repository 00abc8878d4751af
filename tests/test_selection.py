"""The published selection rule, and that the shortcut through it finds the same candidate."""

import math
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from interp import selection
from interp.chat import ChatTokens, tokenize
from interp.generation import next_token_log_probs
from interp.interventions import Ablate, Add
from interp.metrics import kl_divergence, refusal_metric
from interp.models import ChatModel
from interp.selection import Candidate, NothingSurvives, choose, pick, reason
from tests.conftest import PROMPTS

OPEN = ((math.inf, -math.inf),)


def row(
    position: int, layer: int, bypass: float, induce: float | None = 1.0, kl: float | None = 0.01
) -> dict:
    return {"position": position, "layer": layer, "bypass": bypass, "induce": induce, "kl": kl}


# pick


def test_lowest_bypass_among_those_that_pass() -> None:
    table = [
        row(-1, 3, -1.0),
        row(-1, 4, -5.0, kl=0.2),
        row(-1, 5, -4.0, induce=-0.1),
        row(-2, 4, -3.0),
        row(-1, 18, -9.0),
        row(-2, 5, 2.0),
    ]
    found = pick(table, n_layers=20)
    assert found == Candidate(position=-2, layer=4, bypass=-3.0, induce=1.0, kl=0.01)
    # Each filter decides: without it another candidate wins.
    assert pick(table, n_layers=20, kl_threshold=1.0).bypass == -5.0
    assert pick(table, n_layers=20, induce_threshold=-1.0).bypass == -4.0
    assert pick(table, n_layers=20, prune_layer_fraction=0.0).bypass == -9.0
    # The input may be candidates, in any order, or a DataFrame.
    for shuffled in (table[::-1], [Candidate(**entry) for entry in table], pd.DataFrame(table)):
        assert pick(shuffled, n_layers=20) == found


@pytest.mark.parametrize(("n_layers", "last"), [(18, 13), (24, 18), (32, 24), (30, 23), (26, 19)])
def test_layer_cut_rounds_down(n_layers: int, last: int) -> None:
    # Released code: layer >= int(n_layer * (1 - 0.2)) is dropped.
    table = [row(-1, layer, -float(layer)) for layer in range(n_layers)]
    assert pick(table, n_layers=n_layers).layer == last
    assert reason(Candidate(**table[last]), n_layers=n_layers) is None
    assert reason(Candidate(**table[last + 1]), n_layers=n_layers) == "too late a layer"


def test_thresholds_are_not_strict() -> None:
    assert pick([row(-1, 1, 0.0, induce=0.0, kl=0.1)], n_layers=10).layer == 1
    with pytest.raises(NothingSurvives):
        pick([row(-1, 1, 0.0, induce=-1e-9, kl=0.1)], n_layers=10)
    with pytest.raises(NothingSurvives):
        pick([row(-1, 1, 0.0, induce=0.0, kl=0.1 + 1e-9)], n_layers=10)


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("column", ["bypass", "induce", "kl"])
def test_candidates_without_a_finite_score_are_dropped(column: str, missing: float | None) -> None:
    table = [{**row(-1, 1, -9.0), column: missing}, row(-2, 2, 0.0)]
    assert pick(table, n_layers=10).position == -2
    assert pick(pd.DataFrame(table), n_layers=10).position == -2
    with pytest.raises(NothingSurvives, match=r"none of 1 candidates .*nearest: no finite score"):
        pick(table[:1], n_layers=10)


def test_ties_go_to_the_lower_position_then_layer() -> None:
    table = [row(-1, 2, 0.0), row(-3, 5, 0.0), row(-3, 4, 0.0), row(-2, 1, 0.0)]
    for shuffled in (table, table[::-1]):
        found = pick(shuffled, n_layers=10)
        assert (found.position, found.layer) == (-3, 4)


def test_reasons() -> None:
    def why(**changes: float) -> str | None:
        return reason(Candidate(**{**row(-1, 1, 0.0), **changes}), n_layers=10)

    assert why() is None
    assert why(layer=8) == "too late a layer"
    assert why(kl=0.11) == "kl too large"
    assert why(induce=-0.1) == "induces too little"
    assert why(bypass=math.nan) == "not finite"


def test_bad_tables() -> None:
    with pytest.raises(ValueError, match="the table of candidates is empty"):
        pick([], n_layers=10)
    with pytest.raises(ValueError, match="the table of candidates is empty"):
        pick(pd.DataFrame(), n_layers=10)
    broken = row(-1, 1, 0.0)
    del broken["kl"]
    with pytest.raises(
        ValueError, match=r"row 1 of the table has no kl; it needs position, layer, bypass, induce, kl"
    ):
        pick([row(-1, 1, 0.0), broken], n_layers=10)


def test_nothing_survives_names_three_near_misses_and_what_admits_each() -> None:
    table = [
        row(-1, 1, -1.0, kl=0.5),
        row(-1, 2, -2.0, induce=-0.25),
        row(-1, 3, -3.0, induce=-0.125, kl=0.15),
        row(-1, 4, -4.0, induce=-7.0, kl=3.0),
        row(-1, 9, -9.0),  # too late a layer: no threshold admits it
    ]
    with pytest.raises(NothingSurvives) as caught:
        pick(table, n_layers=10)
    message = str(caught.value)
    assert message == (
        "none of 5 candidates has kl <= 0.1, induce >= 0.0 and layer < 8; nearest: "
        "position -1 layer 3 (bypass -3.00, induce -0.12, kl 0.150) needs kl_threshold=0.150 and "
        "induce_threshold=-0.125; "
        "position -1 layer 2 (bypass -2.00, induce -0.25, kl 0.010) needs induce_threshold=-0.250; "
        "position -1 layer 1 (bypass -1.00, induce 1.00, kl 0.500) needs kl_threshold=0.500"
    )
    # The options it names do admit them.
    assert pick(table, n_layers=10, kl_threshold=0.150, induce_threshold=-0.125).layer == 3
    assert pick(table, n_layers=10, induce_threshold=-0.250).layer == 2
    assert pick(table, n_layers=10, kl_threshold=0.500).layer == 1
    assert isinstance(caught.value, ValueError)


# choose

REFUSAL_IDS = [65, 66, 67]


@pytest.fixture(scope="module")
def prompts(tiny: ChatModel) -> tuple[ChatTokens, ChatTokens]:
    return tokenize(tiny.tokenizer, PROMPTS[:3]), tokenize(tiny.tokenizer, PROMPTS[3:])


@pytest.fixture(scope="module")
def directions(tiny: ChatModel) -> dict[tuple[int, int], Tensor]:
    generator = torch.Generator().manual_seed(0)
    places = [(position, layer) for layer in range(tiny.n_layers) for position in (-3, -2, -1)]
    return {place: 2 * torch.randn(tiny.d_model, generator=generator) for place in places}


@pytest.fixture(scope="module")
def exhaustive(
    tiny: ChatModel,
    prompts: tuple[ChatTokens, ChatTokens],
    directions: dict[tuple[int, int], Tensor],
) -> list[dict[str, Any]]:
    """Every candidate scored in full on the plain path, by the table in the module's docstring."""
    harmful, harmless = prompts
    base = next_token_log_probs(tiny, harmless, fast=False)
    table = []
    for (position, layer), direction in directions.items():
        ablate, add = [Ablate(direction=direction)], [Add(direction=direction, layers=[layer])]
        without = next_token_log_probs(tiny, harmful, interventions=ablate, fast=False)
        added = next_token_log_probs(tiny, harmless, interventions=add, fast=False)
        spared = next_token_log_probs(tiny, harmless, interventions=ablate, fast=False)
        table.append(
            row(
                position,
                layer,
                refusal_metric(without, REFUSAL_IDS).mean().item(),
                refusal_metric(added, REFUSAL_IDS).mean().item(),
                kl_divergence(base, spared).mean().item(),
            )
        )
    return table


def assert_same(found: Candidate, expected: Candidate) -> None:
    assert (found.position, found.layer) == (expected.position, expected.layer)
    for column in ("bypass", "induce", "kl"):
        # Fast against plain path, float32.
        assert getattr(found, column) == pytest.approx(getattr(expected, column), rel=1e-3, abs=1e-4)


def run(
    tiny: ChatModel,
    prompts: tuple[ChatTokens, ChatTokens],
    directions: dict[tuple[int, int], Tensor],
    **options: Any,
) -> tuple[Candidate, list[dict[str, Any]], dict[str, Any]]:
    harmful, harmless = prompts
    return choose(
        tiny,
        list(directions),
        directions,
        harmful=harmful,
        harmless=harmless,
        refusal_ids=REFUSAL_IDS,
        **options,
    )


def test_choose_equals_scoring_everything_without_limits(
    tiny: ChatModel,
    prompts: tuple[ChatTokens, ChatTokens],
    directions: dict[tuple[int, int], Tensor],
    exhaustive: list[dict[str, Any]],
) -> None:
    expected = pick(exhaustive, n_layers=3, kl_threshold=math.inf, induce_threshold=-math.inf)
    found, table, rule = run(tiny, prompts, directions, rules=OPEN)
    assert_same(found, expected)
    assert rule["published"] is True
    assert [(entry["position"], entry["layer"]) for entry in table] == list(directions)
    for entry, full in zip(table, exhaustive, strict=True):
        assert entry["bypass"] == pytest.approx(full["bypass"], rel=1e-3, abs=1e-4)


def admitting(exhaustive: list[dict[str, Any]]) -> tuple[float, float, list[dict[str, Any]]]:
    """Limits that drop the two candidates of lowest bypass that the layer cut leaves, and keep some other."""
    early = sorted((entry for entry in exhaustive if entry["layer"] < 2), key=lambda entry: entry["bypass"])
    for kl in sorted(entry["kl"] for entry in early):
        for induce in sorted(entry["induce"] for entry in early):
            limits = kl + 1e-3, induce - 1e-3  # clear of the difference between the two paths
            kept = [e for e in early if e["kl"] <= limits[0] and e["induce"] >= limits[1]]
            if kept and not any(entry in kept for entry in early[:2]):
                return *limits, kept
    raise AssertionError("no such limits; change the seed")


def test_choose_equals_scoring_everything_with_limits_and_scores_less(
    tiny: ChatModel,
    prompts: tuple[ChatTokens, ChatTokens],
    directions: dict[tuple[int, int], Tensor],
    exhaustive: list[dict[str, Any]],
) -> None:
    kl, induce, kept = admitting(exhaustive)
    expected = pick(exhaustive, n_layers=3, kl_threshold=kl, induce_threshold=induce)
    assert expected.bypass == min(entry["bypass"] for entry in kept)
    found, table, rule = run(tiny, prompts, directions, rules=[(kl, induce)])
    assert_same(found, expected)
    measured = [entry for entry in table if not math.isnan(entry["induce"])]
    assert len(measured) < len(table)  # what cannot win was not scored in full
    assert all(entry["bypass"] <= found.bypass for entry in measured)
    for entry in table:
        if entry["bypass"] > found.bypass:
            assert math.isnan(entry["induce"])
    assert (rule["kl_threshold"], rule["induce_threshold"]) == (kl, induce)
    # The stored table gives the same pick again.
    assert pick(table, n_layers=3, kl_threshold=kl, induce_threshold=induce) == found


def test_choose_falls_back_to_the_looser_rule_and_says_so(
    tiny: ChatModel,
    prompts: tuple[ChatTokens, ChatTokens],
    directions: dict[tuple[int, int], Tensor],
    exhaustive: list[dict[str, Any]],
) -> None:
    with pytest.raises(NothingSurvives, match=r"none of 9 candidates has kl <= -1\.0"):
        run(tiny, prompts, directions, rules=[(-1.0, 0.0)])
    kl, induce, _ = admitting(exhaustive)
    found, _, rule = run(tiny, prompts, directions, rules=[(-1.0, 0.0), (kl, induce), *OPEN])
    assert_same(found, pick(exhaustive, n_layers=3, kl_threshold=kl, induce_threshold=induce))
    assert rule["published"] is False
    assert (rule["kl_threshold"], rule["induce_threshold"]) == (kl, induce)
    assert rule["text"] == f"lowest bypass with induce >= {induce:g}, KL <= {kl:g} and layer < 2"


def test_choose_shows_its_loop(
    tiny: ChatModel, prompts: tuple[ChatTokens, ChatTokens], directions: dict[tuple[int, int], Tensor]
) -> None:
    seen: list[tuple[int, int]] = []

    def watch(items: Any) -> Any:
        for item in items:
            seen.append(item)
            yield item

    run(tiny, prompts, directions, rules=OPEN, watch=watch)
    assert seen == list(directions)


def test_a_score_that_is_not_a_number_does_not_disturb_the_order(
    tiny: ChatModel,
    prompts: tuple[ChatTokens, ChatTokens],
    directions: dict[tuple[int, int], Tensor],
    exhaustive: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    best = pick(exhaustive, n_layers=3, kl_threshold=math.inf, induce_threshold=-math.inf)
    order = sorted(
        directions,
        key=lambda place: -next(e["bypass"] for e in exhaustive if (e["position"], e["layer"]) == place),
    )
    order = [place for place in order if place[1] < 2]
    assert order[-1] == (best.position, best.layer)
    broken = directions[order[1]]
    log_probs = selection.next_token_log_probs

    def sometimes_nan(*args: Any, interventions: Any = (), **options: Any) -> Tensor:
        values = log_probs(*args, interventions=interventions, **options)
        hit = interventions and torch.equal(interventions[0].direction, broken)
        return values * math.nan if hit else values

    monkeypatch.setattr(selection, "next_token_log_probs", sometimes_nan)
    harmful, harmless = prompts
    found, _, _ = choose(
        tiny, order, directions, harmful=harmful, harmless=harmless, refusal_ids=REFUSAL_IDS, rules=OPEN
    )
    assert_same(found, best)
