"""The published selection rule."""

import math

import pandas as pd
import pytest

from interp.representations.selection import Candidate, NothingSurvives, Rule, pick


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
    assert Rule().reason(Candidate(**table[last]), n_layers=n_layers) is None
    assert Rule().reason(Candidate(**table[last + 1]), n_layers=n_layers) == "too late a layer"


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
        return Rule().reason(Candidate(**{**row(-1, 1, 0.0), **changes}), n_layers=10)

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
