"""Measures: a planted shift is found, the control does not move, and what is not finite is no number."""

from dataclasses import replace

import pytest

from interp.data.human_texts import bundled_passages
from interp.data.multiple_choice import load_questions
from interp.detectors.machine_text.pairs import make_pairs
from interp.detectors.machine_text.reading import score_texts
from interp.evaluation.multiple_choice import option_scores
from interp.models.chat_model import ChatModel
from interp.stats import Estimate, auroc
from interp.tracking.measures import measure, measurement
from interp.tracking.references import fit_reference
from interp.tracking.spec import TrackingSpec


def test_a_planted_shift_is_found_along_its_direction_and_not_along_the_control(
    tiny: ChatModel, spec: TrackingSpec
) -> None:
    reference = fit_reference(tiny, spec)
    axis = reference.axis("harmfulness")
    vector = reference.direction(axis)
    embedding = tiny.blocks[axis.layer].module
    handle = embedding.register_forward_pre_hook(
        lambda _, args, kwargs: ((args[0] - 0.5 * vector, *args[1:]), kwargs) if args else None,
        with_kwargs=True,
    )
    try:
        rows = measure(tiny, replace(spec, measures=("shift",)), reference)
    finally:
        handle.remove()
    numbers = {(row.measure, row.prompts): row.estimate for row in rows}
    for kind in ("harmful", "harmless", "borderline"):
        moved, control = (numbers[f"shift_{name}harmfulness", kind] for name in ("", "control_"))
        assert moved.value == pytest.approx(-0.5, abs=1e-4)
        assert control.value == pytest.approx(0.0, abs=1e-4)


def test_rows_that_are_not_finite_are_not_numbers() -> None:
    for value in (float("nan"), float("inf")):
        row = measurement("refusal_rate", "harmful", Estimate(value=value, n=3))
        assert not row.estimate.measurable and row.estimate.n == 0
        assert row.status == "not measured: not finite"
    measured = measurement("refusal_rate", "harmful", Estimate(value=0.5, n=3))
    assert measured.status == "ok" and measured.estimate.n == 3  # control


def test_knowledge_is_measured_where_it_is_named(tiny: ChatModel, spec: TrackingSpec) -> None:
    reference = fit_reference(tiny, replace(spec, measures=("guard",)))
    assert "knowledge" not in TrackingSpec().measures  # stored series of before stay comparable
    rows = measure(tiny, replace(spec, measures=("knowledge",), n_questions=4), reference)
    scored = option_scores(tiny, load_questions("builtin").first(4))
    assert [(row.measure, row.prompts) for row in rows] == [
        ("legal_accuracy", "builtin"),
        ("legal_right_probability", "builtin"),
    ]
    assert rows[0].estimate == scored.scores.accuracy and rows[0].estimate.n == 4
    assert rows[1].estimate.value == scored.right_probability.value


def test_detectability_is_that_of_plain_pairs_and_scores(tiny: ChatModel, spec: TrackingSpec) -> None:
    small = replace(spec, measures=("detectability",), n_texts=3, text_tokens=60)
    rows = measure(tiny, small, fit_reference(tiny, replace(spec, measures=("refusal",))))
    numbers = {(row.measure, row.prompts): row.estimate for row in rows}
    pairs = make_pairs(tiny, bundled_passages().first(3), length=60, prefix_tokens=20)
    machine, human = (
        [text["fast_detect_gpt"] for text in score_texts(tiny, part.texts)]
        for part in (pairs.machine, pairs.human)
    )
    assert numbers["own_text_auroc", "Fast-DetectGPT"].value == pytest.approx(auroc(machine, human).value)
    gap = sum(machine) / 3 - sum(human) / 3
    assert numbers["own_text_gap", "Fast-DetectGPT"].value == pytest.approx(gap, rel=1e-4)
    assert ("own_text_auroc", "log-rank") in numbers and len(rows) == 3
    assert "detectability" not in TrackingSpec().measures  # only where it is asked for
