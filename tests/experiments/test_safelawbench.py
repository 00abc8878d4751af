"""SafeLawBench under steering: changes are paired with the baseline, controls have the norm, a run is whole."""

from pathlib import Path
from typing import Any

import pytest
import torch

from interp.data.multiple_choice import load_questions
from interp.data.prompts import load_prompts
from interp.directions import Direction
from interp.engine.interventions import Ablate
from interp.evaluation.multiple_choice import option_scores
from interp.experiments.safelawbench import BASELINE, CRITICAL, EXPERIMENT, Config
from interp.experiments.safelawbench.run import random_like
from interp.models.chat_model import ChatModel
from tests.experiments.counted import assert_planned, counting

SMALL = Config(n_questions=8, coefficients=(2.0,), n_random=2, n_train=8, n_replies=4)


@pytest.fixture(scope="module")
def run(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("safelawbench") / "run"
    with counting("safelawbench", tiny):
        finished = EXPERIMENT.run(tiny, load_prompts(), SMALL, out=folder)
    stored = EXPERIMENT.read(folder)
    assert stored.result == finished.result
    return stored


def test_every_arm_has_every_group_and_the_baseline_does_not_change(run: Any) -> None:
    arms = run.result.arms
    assert list(arms) == [
        BASELINE,
        "ablation",
        "addition x2",
        "random ablation",
        "random addition x2",
    ]
    assert run.result.groups == dict.fromkeys(run.result.groups, 2) and len(run.result.groups) == 4
    for name, arm in arms.items():
        assert arm.scores.accuracy.n == 8 and set(arm.change_by_group) == set(run.result.groups)
        assert (arm.change.value == 0) == (name == BASELINE)
        assert arm.refused is not None and arm.refused + arm.unread <= 4
        assert sum(arm.letter_bias.values()) == pytest.approx(1, abs=1e-4)
    more = run.result.critical_against_rest["ablation"]
    critical, *rest = (arms["ablation"].change_by_group[g].value for g in run.result.groups)
    assert next(iter(run.result.groups)) == CRITICAL
    assert more.value == pytest.approx(critical - sum(rest) / 3, abs=1e-6)


def test_the_ablation_is_that_of_the_stored_direction(run: Any, tiny: ChatModel) -> None:
    refusal = Direction(vector=run.tensors["refusal"], layer=run.result.layer, position="t_post_inst")
    questions = load_questions("builtin").first(8)
    steered = option_scores(tiny, questions, interventions=[Ablate(refusal)])
    assert run.result.arms["ablation"].right_probability.value == pytest.approx(
        steered.right_probability.value, abs=1e-5
    )
    control = random_like(refusal, 0)
    assert control.norm == pytest.approx(refusal.norm, rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(control.vector, refusal.vector, dim=0)
    assert abs(float(cosine)) < 0.6 and not torch.equal(control.vector, random_like(refusal, 1).vector)


def test_figures_tables_and_page_are_drawn_from_the_stored_numbers_alone(run: Any) -> None:
    assert set(run.figures()) == {"accuracy", "change", "letters"}
    assert len(run.table()) == 5
    assert any("knows more than chance" in line for line in run.verdicts())
    page = run.report()
    questions = load_questions("builtin").questions
    assert not any(question.text in page for question in questions)
    assert "no benchmark" in page


def test_mistakes_are_named(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="builtin has 4 examples, asked for 9; lower shots"):
        EXPERIMENT.run(tiny, load_prompts(), Config(shots=9))
    with pytest.raises(ValueError, match=r"no such prompt file: absent\.json"):
        EXPERIMENT.run(tiny, load_prompts(), Config(questions="absent.json"))


def test_judges_see_the_replies_to_questions(tiny: ChatModel) -> None:
    small = Config(n_questions=4, coefficients=(), n_random=1, n_train=2, n_replies=3)
    judged = EXPERIMENT.run(tiny, load_prompts(), small, judges=("arditi", "zhao")).result.judgements
    assert judged is not None and judged.left_out == 0
    assert [(arm.arm, arm.group, arm.n) for arm in judged.arms] == [
        ("replies-baseline", "question", 3),
        ("replies-ablation, Ablate", "question", 3),
        ("replies-random-ablation, Ablate", "question", 3),
    ]
    assert set(judged.arms[0].refused) == {"arditi", "zhao"}


@pytest.mark.usefixtures("run")
def test_a_plan_counts_the_tokens_of_a_run(saved_tiny: Path) -> None:
    assert_planned("safelawbench", saved_tiny, SMALL)
