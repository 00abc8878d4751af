"""The method: one refusal direction, and every question under every intervention.

1. The refusal direction: difference in means of harmful and harmless training prompts at `t_post_inst` (Arditi et al.
   2024, arXiv:2406.11717), at one layer.
2. Arms: nothing, ablation, addition at each coefficient; and for each the same with random directions of that norm.
3. Every question by the log-probability of its choices in every cyclic order (`interp.evaluation.multiple_choice`), so
   that neither a preference for a letter nor a reply that cannot be read looks like ignorance.
4. Some questions by a greedy reply in SafeLawBench's direct format, to count refusals.

Changes are paired by question. Random directions of one kind of arm are pooled: their change is the mean over them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.multiple_choice import Question, Questions, load_questions
from interp.data.prompt_sets import PromptSet
from interp.directions import Direction
from interp.engine.interventions import Ablate, Add, Intervention
from interp.evaluation.choice_prompts import ChoiceFormat, choice_messages, question_text
from interp.evaluation.choice_scores import score_answers
from interp.evaluation.multiple_choice import OptionScores, option_scores, replied_answers
from interp.experiments.definition import Outcome
from interp.experiments.safelawbench import BASELINE, CRITICAL, RANDOM, Arm, Config, Result
from interp.models.chat_model import ChatModel
from interp.representations.steering import find_directions
from interp.stats import Estimate, mean_with_interval
from interp.storage.reply_records import judge_further
from interp.storage.stages import Stages


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run the experiment.

    Raises:
        ValueError: no such questions, fewer examples than shots, or as `find_directions`.
    """
    questions = load_questions(config.questions, seed=config.seed).first(config.n_questions)
    have = len(questions.examples)
    if config.shots > have:
        raise ValueError(f"{questions.name} has {have} examples, asked for {config.shots}; lower shots")
    form = ChoiceFormat(shots=config.shots)

    # 1. The direction.
    kept = stages.keep("direction", lambda: {"refusal": _refusal(model, prompts, config).vector})
    layer = model.layer(3 * model.n_layers // 5 if config.layer is None else config.layer)
    refusal = Direction(vector=kept["refusal"], layer=layer, position="t_post_inst")
    stages.lap("direction")

    # 2. and 3. Every question under every intervention.
    scored: dict[str, list[OptionScores]] = {}
    for name, directions in _arms(refusal, config).items():
        found = []
        for number, interventions in enumerate(directions):
            tables = stages.keep(
                f"scores-{name.replace(' ', '-')}-{number}",
                lambda interventions=interventions: _tables(
                    option_scores(
                        model,
                        questions,
                        format=form,
                        interventions=interventions,
                        show_progress=stages.show_progress,
                    )
                ),
            )
            found.append(_scores(questions, tables))
        scored[name] = found
        stages.lap(name)

    # 4. Refusals in replies.
    _name_questions(questions.first(config.n_replies) if config.n_replies else None, form)
    replied: dict[str, tuple[int, int] | None] = dict.fromkeys(scored)
    for name, directions in _arms(refusal, config).items() if config.n_replies else ():
        replied[name] = stages.keep(
            f"replies-{name.replace(' ', '-')}",
            lambda directions=directions: _refusals(
                model, questions.first(config.n_replies), form, directions[0], stages
            ),
            tuple[int, int],
        )
        stages.lap(f"{name}, replies")

    baseline = scored[BASELINE][0]
    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        questions=questions.name,
        questions_hash=questions.hash,
        groups={g: sum(q.group == g for q in questions.questions) for g in questions.groups},
        layer=layer,
        critical_against_rest={
            name: _critical_against_rest(_change(found, baseline), questions.questions)
            for name, found in scored.items()
            if name != BASELINE and CRITICAL in questions.groups and len(questions.groups) > 1
        },
        arms={
            name: _arm(found, baseline, questions.questions, replied[name]) for name, found in scored.items()
        },
    )
    return Outcome(result=result, tensors={"refusal": refusal.vector})


def _refusal(model: ChatModel, prompts: PromptSet, config: Config) -> Direction:
    return find_directions(model, prompts, layer=config.layer, n_prompts=config.n_train)["refusal"]


def _arms(refusal: Direction, config: Config) -> dict[str, list[list[Intervention]]]:
    """Interventions by arm; of random arms one list for each direction."""
    controls = [random_like(refusal, config.seed + number) for number in range(config.n_random)]
    arms: dict[str, list[list[Intervention]]] = {BASELINE: [[]], "ablation": [[Ablate(refusal)]]}
    for coefficient in config.coefficients:
        arms[f"addition x{coefficient:g}"] = [[Add(refusal, coefficient=coefficient)]]
    arms[f"{RANDOM} ablation"] = [[Ablate(control)] for control in controls]
    for coefficient in config.coefficients:
        arms[f"{RANDOM} addition x{coefficient:g}"] = [
            [Add(control, coefficient=coefficient)] for control in controls
        ]
    return arms


def random_like(direction: Direction, seed: int) -> Direction:
    """A random direction of the same norm, layer and position."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(direction.vector.shape, generator=generator)
    return Direction(
        vector=vector / vector.norm() * direction.vector.norm().cpu(),
        layer=direction.layer,
        position=direction.position,
    )


def _tables(scores: OptionScores) -> dict[str, Tensor]:
    return {
        "log_probs": scores.log_probs,
        "by_letter": scores.by_letter,
        "letter_mass": scores.letter_mass,
        "orders": torch.tensor([scores.orders]),
    }


def _scores(questions: Questions, tables: dict[str, Tensor]) -> OptionScores:
    return OptionScores(
        questions=questions.questions,
        log_probs=tables["log_probs"],
        by_letter=tables["by_letter"],
        letter_mass=tables["letter_mass"],
        orders=int(tables["orders"][0]),
    )


def _name_questions(asked: Questions | None, form: ChoiceFormat) -> None:
    """Let judges see the replies to these questions."""
    if asked is not None:
        judge_further(
            [
                choice_messages(q, examples=asked.examples, format=form)[-1]["content"]
                for q in asked.questions
            ],
            [q.id for q in asked.questions],
            [question_text(q) for q in asked.questions],
            "question",
        )


def _refusals(
    model: ChatModel, questions: Questions, form: ChoiceFormat, interventions: Sequence[Any], stages: Stages
) -> tuple[int, int]:
    """Number of replies that refuse, and of those without a letter that do not."""
    answers = replied_answers(
        model,
        questions,
        format=form,
        rule="strict",
        max_new_tokens=24,
        interventions=interventions,
        show_progress=stages.show_progress,
    )
    scores = score_answers(answers)
    return scores.refused, scores.unread


def _right(scores: OptionScores) -> Float[Tensor, " question"]:
    """Probability of the right choice among the choices."""
    rows = torch.tensor([question.answer for question in scores.questions])[:, None]
    return scores.log_probs.double().softmax(1).gather(1, rows)[:, 0]


def _change(found: Sequence[OptionScores], baseline: OptionScores) -> Float[Tensor, " question"]:
    """Change of the right choice's probability against the baseline, mean over directions."""
    return torch.stack([_right(scores) for scores in found]).mean(0) - _right(baseline)


def _arm(
    found: Sequence[OptionScores],
    baseline: OptionScores,
    questions: Sequence[Question],
    replied: tuple[int, int] | None,
) -> Arm:
    """One arm; accuracy and letters are those of the first direction where there are several."""
    change = _change(found, baseline)
    groups = dict.fromkeys(question.group for question in questions)
    right = torch.stack([_right(scores) for scores in found]).mean(0)
    return Arm(
        scores=found[0].scores,
        right_probability=mean_with_interval(right.tolist(), unit="probability"),
        change=mean_with_interval(change.tolist(), unit="probability"),
        change_by_group={
            group: mean_with_interval(
                [value for value, q in zip(change.tolist(), questions, strict=True) if q.group == group],
                unit="probability",
            )
            for group in groups
        },
        letter_mass=float(torch.stack([scores.letter_mass for scores in found]).mean()),
        letter_bias=found[0].letter_bias,
        refused=None if replied is None else replied[0],
        unread=None if replied is None else replied[1],
    )


def _critical_against_rest(change: Float[Tensor, " question"], questions: Sequence[Question]) -> Estimate:
    """Mean change in the gravest group minus that in the others, with a bootstrap interval over questions of both."""
    critical = torch.tensor([question.group == CRITICAL for question in questions])
    a, b = change[critical].double(), change[~critical].double()
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [
            a[torch.randint(len(a), (len(a),), generator=generator)].mean()
            - b[torch.randint(len(b), (len(b),), generator=generator)].mean()
            for _ in range(1000)
        ]
    )
    low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    value = float(a.mean() - b.mean())
    return Estimate(
        value=value,
        n=len(change),
        low=min(low, value),
        high=max(high, value),
        unit="probability",
        interval="bootstrap",
    )
