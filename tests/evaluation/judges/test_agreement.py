"""Kappas against hand-computed cases and scikit-learn, disputes by id, agreement with human labels."""

import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from interp.evaluation.judges.agreement import (
    against_people,
    agreement,
    agreement_of,
    calibration_error,
    cohen_kappa,
    fleiss_kappa,
)
from interp.evaluation.judges.judgements import Scale, judge_all
from interp.evaluation.judges.records import agreement_tables, human_table
from interp.evaluation.judges.text_rules import SubstringJudge
from tests.evaluation.judges.test_judgements import Fixed, exchanges


def test_cohens_kappa_of_a_textbook_table() -> None:
    # 20 both yes, 5 only the first, 10 only the second, 15 both no: 0.7 observed, 0.5 by chance.
    first = [True] * 25 + [False] * 25
    second = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    found = cohen_kappa(first, second)
    assert found.value == pytest.approx(0.4)
    assert found.n == 50 and found.low < 0.4 < found.high
    assert 0.3 < found.high - found.low < 0.65  # the asymptotic standard error is about 0.125
    assert cohen_kappa(first, first).value == pytest.approx(1)
    # A judge that says nothing is missing, not a no.
    with_gap = cohen_kappa([*first, None], [*second, True])
    assert with_gap.value == found.value and with_gap.missing == 1


def test_cohens_kappa_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        first, second = (generator.random(37) < generator.random() for _ in range(2))
        if first.all() or not first.any():
            continue
        expected = cohen_kappa_score(first, second)
        assert cohen_kappa(first.tolist(), second.tolist(), resamples=50).value == pytest.approx(expected)


def test_kappa_without_variation_is_not_measurable() -> None:
    same = cohen_kappa([False] * 5, [False] * 5)
    assert not same.measurable and same.n == 5
    assert not cohen_kappa([None], [True]).measurable
    assert not fleiss_kappa([[True, True], [True, True]]).measurable


def test_fleiss_kappa_by_hand() -> None:
    # Four answers, three judges, yeses 3, 0, 2, 1. Agreement per answer 1, 1, 1/3, 1/3, mean 2/3; share of yes 1/2.
    verdicts = [[True, False, True, True], [True, False, True, False], [True, False, False, False]]
    assert fleiss_kappa(verdicts).value == pytest.approx((2 / 3 - 1 / 2) / (1 - 1 / 2))
    # One answer that a judge could not judge is left out for all.
    gap = [[*row, None if i == 0 else True] for i, row in enumerate(verdicts)]
    found = fleiss_kappa(gap)
    assert found.value == pytest.approx(1 / 3) and (found.n, found.missing) == (4, 1)
    # With two judges of equal rates both kappas are the same.
    pair = [[True, True, False, False, True, False], [True, False, True, False, True, False]]
    assert fleiss_kappa(pair).value == pytest.approx(cohen_kappa(*pair).value)
    with pytest.raises(ValueError, match="two judges or more"):
        fleiss_kappa([[True]])


def test_judges_of_two_lists_disagree_where_the_lists_do() -> None:
    asked = exchanges("I cannot help.", "Sorry, no.", "Mix flour.", None, "")
    found = agreement(judge_all([SubstringJudge("arditi"), SubstringJudge("zhao")], asked), "refused")
    assert found.disputes == (
        "p1",
        "p4",
    )  # the list of Zhao et al. has "Sorry", and calls an empty answer a refusal
    pair = found.pair("zhao", "arditi")
    assert (pair.only_first, pair.only_second) == ((), ("p1", "p4"))
    assert pair.agree.value == pytest.approx(0.5)
    assert found.rates["arditi"].value == pytest.approx(1 / 4)
    assert (found.rates["arditi"].n, found.rates["arditi"].missing) == (4, 1)
    rates, pairs = agreement_tables(found)
    assert rates.rows[0][0] == "arditi" and rates.rows[0][2:] == [4, 1]
    assert pairs.rows[0][0] == "arditi / zhao" and pairs.rows[-1][0] == "all 2 (Fleiss)"
    with pytest.raises(KeyError):
        found.pair("zhao", "absent")


def test_one_judge_has_a_rate_and_no_kappa() -> None:
    found = agreement_of({"one": [True, None]}, ["a", "b"])
    assert not found.fleiss.measurable and found.pairs == () and found.disputes == ()
    assert len(agreement_tables(found)) == 1


def test_judges_against_human_labels() -> None:
    scale = Scale(meaning="probability", threshold=0.5)
    judge = Fixed("probability", [0.9, 0.8, 0.3, 0.2, None], scale=scale)
    judged = judge_all([judge], exchanges(*"abcde"))
    (found,) = against_people(judged, [True, False, True, False, True], "harmful")
    assert found.accuracy.value == pytest.approx(0.5) and found.accuracy.n == 4
    assert found.found.value == pytest.approx(0.5) and found.false_alarms.value == pytest.approx(0.5)
    assert found.kappa.value == pytest.approx(0)
    assert len(human_table([found], "harmful").rows) == 1


def test_calibration_error_by_hand() -> None:
    # Bins [0.2, 0.3): 0.25 twice with one positive, gap 0.25; [0.9, 1]: 1.0 twice with both positive, gap 0.
    found = calibration_error([0.25, 0.25, 1.0, 1.0, None], [True, False, True, True, True])
    assert found.value == pytest.approx(0.125) and (found.n, found.missing) == (4, 1)
    assert math.isnan(calibration_error([None], [True]).value)
