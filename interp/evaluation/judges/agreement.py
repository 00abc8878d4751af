"""How far judges agree: kappas with intervals, answers in dispute by id, rates by judge, agreement with human labels.

    table = agreement(judged, "refused")
    table.pairs["arditi", "zhao"].kappa         # Cohen's kappa, an Estimate with a bootstrap interval over answers
    table.fleiss                                # Fleiss' kappa of all judges
    table.disputes                              # ids of answers about which two judges differ

    kappa = (p_observed - p_chance) / (1 - p_chance)

Cohen's chance agreement comes from the two judges' own rates, Fleiss' from the rate over all of them. Where all
verdicts are alike there is nothing to agree about: kappa is not measurable, though the share of agreement is 1.
Answers that one of the judges could not judge are left out of a pair and counted as missing. The interval covers the
sampling of answers, not that of judges. Judges that share a fault agree with each other: a high kappa is no evidence
that they are right.

Sources: Cohen 1960; Fleiss 1971.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from interp.evaluation.judges.judgements import Judged
from interp.evaluation.judges.records import (
    Agreement,
    ArmRates,
    HumanAgreement,
    PairAgreement,
    Question,
    ReplyVerdicts,
    RunJudgements,
    verdict_rate,
)
from interp.stats import Estimate, mean_with_interval, rate

Verdicts = Sequence[bool | None]


def cohen_kappa(first: Verdicts, second: Verdicts, *, seed: int = 0, resamples: int = 2000) -> Estimate:
    """Cohen's kappa of two judges' verdicts, with a percentile-bootstrap interval over the answers both judged."""
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    missing = len(first) - len(both)
    cells = np.array([sum(pair == cell for pair in both) for cell in _CELLS])
    # Resampling answers with replacement is a multinomial draw of the four cells.
    draws = _multinomial(cells, seed, resamples)
    return _estimate(_cohen(cells[None])[0], _cohen(draws), len(both), missing)


_CELLS = ((True, True), (True, False), (False, True), (False, False))


def _cohen(cells: Int[ndarray, "draw cell"]) -> Float[ndarray, " draw"]:
    n = cells.sum(1).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        yes_yes, yes_no, no_yes, no_no = (cells[:, i] / n for i in range(4))
        observed = yes_yes + no_no
        one, two = yes_yes + yes_no, yes_yes + no_yes
        chance = one * two + (1 - one) * (1 - two)
        return np.where(1 - chance > 1e-12, (observed - chance) / (1 - chance), math.nan)


def fleiss_kappa(verdicts: Sequence[Verdicts], *, seed: int = 0, resamples: int = 2000) -> Estimate:
    """Fleiss' kappa of two or more judges, over the answers that all of them judged, with a bootstrap interval.

    Args:
        verdicts: verdicts of every judge on the same answers.

    Raises:
        ValueError: fewer than two judges.
    """
    if len(verdicts) < 2:
        raise ValueError(f"Fleiss' kappa needs two judges or more, got {len(verdicts)}")
    rows = [row for row in zip(*verdicts, strict=True) if None not in row]
    missing = len(verdicts[0]) - len(rows)
    yes = [sum(map(bool, row)) for row in rows]
    cells = np.array([yes.count(k) for k in range(len(verdicts) + 1)])  # answers by their number of yeses
    draws = _multinomial(cells, seed, resamples)
    return _estimate(_fleiss(cells[None])[0], _fleiss(draws), len(rows), missing)


def _fleiss(cells: Int[ndarray, "draw yes"]) -> Float[ndarray, " draw"]:
    judges = cells.shape[1] - 1
    k, n = np.arange(judges + 1), cells.sum(1).astype(float)
    pairs = (k * (k - 1) + (judges - k) * (judges - k - 1)) / (judges * (judges - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = cells @ pairs / n
        share = cells @ k / (n * judges)
        chance = share**2 + (1 - share) ** 2
        return np.where(1 - chance > 1e-12, (observed - chance) / (1 - chance), math.nan)


def _multinomial(cells: Int[ndarray, " cell"], seed: int, resamples: int) -> Int[ndarray, "draw cell"]:
    n = int(cells.sum())
    if n == 0:
        return np.zeros((resamples, len(cells)), dtype=int)
    return np.random.default_rng(seed).multinomial(n, cells / n, size=resamples)


def _estimate(value: float, draws: Float[ndarray, " draw"], n: int, missing: int) -> Estimate:
    usable = draws[np.isfinite(draws)]
    if not math.isfinite(value) or len(usable) < 2:
        return Estimate.unmeasured(n, unit="kappa", missing=missing)
    low, high = np.quantile(usable, (0.025, 0.975))
    return Estimate(
        value=float(value),
        n=n,
        low=float(low),
        high=float(high),
        unit="kappa",
        interval="bootstrap",
        missing=missing,
    )


def agreement(judged: Judged, question: Question) -> Agreement:
    """Rates by judge, agreement of every two, and the answers in dispute, on one question."""
    return agreement_of(judged.verdicts(question), [each.id for each in judged.exchanges], question)


def mean_scores(judged: Judged) -> dict[str, Estimate]:
    """Mean of `harmful` over the answers that a judge judged, on its own scale, by judge that says."""
    found = {}
    for judge in judged.asked("harmful"):
        scores = [each.harmful for each in judged.judgements[judge.name]]
        said = [score for score in scores if score is not None]
        missing = len(scores) - len(said)
        found[judge.name] = (
            replace(mean_with_interval(said), missing=missing)
            if said
            else Estimate.unmeasured(missing=missing)
        )
    return found


def agreement_of(
    verdicts: Mapping[str, Verdicts], ids: Sequence[str], question: Question = "refused"
) -> Agreement:
    """`agreement` of verdicts that are at hand, by judge."""
    pairs = []
    for (first, one), (second, two) in combinations(verdicts.items(), 2):
        both = [(i, a, b) for i, a, b in zip(ids, one, two, strict=True) if None not in (a, b)]
        pairs.append(
            PairAgreement(
                first=first,
                second=second,
                agree=rate([a == b for _, a, b in both]),
                kappa=cohen_kappa(one, two),
                only_first=tuple(i for i, a, b in both if a and not b),
                only_second=tuple(i for i, a, b in both if b and not a),
            )
        )
    rows = list(zip(*verdicts.values(), strict=True)) if verdicts else []
    return Agreement(
        question=question,
        rates={name: verdict_rate(each) for name, each in verdicts.items()},
        pairs=tuple(pairs),
        fleiss=fleiss_kappa(list(verdicts.values()))
        if len(verdicts) > 1
        else Estimate.unmeasured(len(ids), unit="kappa"),
        disputes=tuple(i for i, row in zip(ids, rows, strict=bool(rows)) if {True, False} <= set(row)),
    )


def run_judgements(found: ReplyVerdicts) -> RunJudgements:
    """Every judge's rates by arm and kind of prompts, and where they disagree over all replies."""
    rows: dict[tuple[str, str], list[int]] = {}
    for row, place in enumerate(zip(found.arms, found.groups, strict=True)):
        rows.setdefault(place, []).append(row)
    rates = {place: found.rates(part) for place, part in rows.items()}

    def agreed(question: Question) -> Agreement | None:
        verdicts = found.by_question[question]
        return agreement_of(verdicts, found.ids, question) if verdicts and found.ids else None

    return RunJudgements(
        asked=found.asked,
        scales=found.scales,
        arms=tuple(
            ArmRates(arm=arm, group=group, n=len(part), **rates[arm, group])
            for (arm, group), part in rows.items()
        ),
        refused=agreed("refused"),
        harmful=agreed("harmful"),
        left_out=found.left_out,
    )


def against_people(judged: Judged, labels: Sequence[bool | None], question: Question) -> list[HumanAgreement]:
    """Every judge of one question against human labels of the same answers; None where people gave none."""
    found = []
    for judge in judged.asked(question):
        said = judged.verdicts(question)[judge.name]
        both = [(a, b) for a, b in zip(said, labels, strict=True) if a is not None and b is not None]
        scores = [each.harmful for each in judged.judgements[judge.name]]
        found.append(
            HumanAgreement(
                judge=judge.name,
                accuracy=rate([a == b for a, b in both]),
                kappa=cohen_kappa(said, labels),
                found=rate([a for a, b in both if b]),
                false_alarms=rate([a for a, b in both if not b]),
                calibration_error=calibration_error(scores, labels)
                if question == "harmful"
                else Estimate.unmeasured(),
            )
        )
    return found


def calibration_error(
    scores: Sequence[float | None],
    labels: Sequence[bool | None],
    *,
    bins: int = 10,
    seed: int = 0,
    resamples: int = 500,
) -> Estimate:
    """Expected calibration error: mean distance of score and share of positives over bins, weighted by their answers.

    Bins are of equal width over 0 to 1. Binned errors are biased upwards with few answers in a bin, so that the
    bootstrap's interval can lie above the value.
    """
    both = [(s, b) for s, b in zip(scores, labels, strict=True) if s is not None and b is not None]
    if not both:
        return Estimate.unmeasured(missing=len(scores))
    values, truth = np.array([s for s, _ in both], dtype=float), np.array([b for _, b in both], dtype=float)
    place = np.minimum((values * bins).astype(int), bins - 1)

    def error(rows: Int[ndarray, " row"]) -> float:
        gaps = np.bincount(place[rows], weights=values[rows] - truth[rows], minlength=bins)
        return float(np.abs(gaps).sum() / len(rows))

    generator = np.random.default_rng(seed)
    draws = [error(generator.integers(0, len(both), len(both))) for _ in range(resamples)]
    low, high = np.quantile(draws, (0.025, 0.975))
    return Estimate(
        value=error(np.arange(len(both))),
        n=len(both),
        low=float(low),
        high=float(high),
        interval="bootstrap",
        missing=len(scores) - len(both),
    )
