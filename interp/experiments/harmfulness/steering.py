"""Steering along the harmfulness and the refusal direction, one layer at a time: what each does to behaviour.

    h^l <- h^l + c v^l        at the input of block l, at prompt tokens only

Source: Zhao et al. 2025, arXiv:2507.11878, section 3 (figures 4, 5, 10 and 16). Controls: a random direction with each
one's norm, and the refusal direction at instruction tokens alone, which does next to nothing there and would feign a
dissociation if it were compared with the harmfulness direction at the same tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from interp.data.prompts import Prompts
from interp.directions import random_direction
from interp.engine.budgets import PassBudget
from interp.engine.interventions import Add
from interp.evaluation.early_verdicts import refusal_verdicts_each
from interp.experiments.harmfulness import ON_INSTRUCTION, RANDOM, Config
from interp.experiments.harmfulness.reply_inversion import INVERSIONS, ask, baselines, verdicts_each
from interp.experiments.harmfulness.results import (
    InversionArms,
    InversionSweep,
    PositionSweep,
    QuestionChoice,
    RefusalSweep,
    Verdicts,
)
from interp.models.chat_model import ChatModel
from interp.models.tokens import Positions
from interp.stats import Estimate
from interp.storage.stages import Stages

BEFORE_QUESTION: Positions = ("prefix", "instruction")


@dataclass(frozen=True, eq=False, kw_only=True)
class Directions:
    """The two directions of every layer, at their natural lengths."""

    harmfulness: Float[Tensor, "layer d_model"]
    """Refused harmful minus accepted harmless at `t_inst`."""
    refusal: Float[Tensor, "layer d_model"]
    """Refusal directions of the same groups at `t_post_inst`."""

    def arm(self, name: str, layer: int, *, coefficient: float, inversion: bool, seed: int) -> Add:
        """The addition that an arm makes at a layer; a leading - or + in its name is its sign.

        Where a question follows the request, harmfulness (and the random direction of its norm) is added before the
        question only, refusal at all prompt tokens (their `intervene_context_only`).
        """
        sign = -1.0 if name.startswith("-") else 1.0
        bare = name.lstrip("+-")
        vector = {"harmfulness": self.harmfulness, RANDOM[0]: self.harmfulness}.get(bare, self.refusal)[layer]
        if bare in RANDOM:
            vector = random_direction(vector, seed=seed * 1000 + layer)
        before = inversion and bare in ("harmfulness", RANDOM[0])
        positions: Positions = BEFORE_QUESTION if before else "all"
        if bare == ON_INSTRUCTION:
            positions = "instruction"
        return Add(
            direction=vector,
            layers=(layer,),
            coefficient=sign * coefficient,
            positions=positions,
            new_tokens="none",
        )


REFUSAL_ARMS = ("harmfulness", "refusal", ON_INSTRUCTION, *RANDOM)
INVERSION_ARMS = {
    "harmless": ("+harmfulness", "+refusal", "-refusal", "+" + ON_INSTRUCTION, *RANDOM),
    "harmful": ("-harmfulness", "-refusal", "+refusal", "-" + ON_INSTRUCTION, *RANDOM),
}
"""Figure 5a steers harmless prompts, figure 5b harmful ones."""
Job = TypeVar("Job")
Found = TypeVar("Found")


def _in_batches(
    model: ChatModel,
    jobs: Sequence[Job],
    compute: Callable[[Sequence[Job]], Sequence[Found]],
    kind: type[Found],
    *,
    n_prompts: int,
    stage: str,
    label: str,
    stages: Stages,
) -> list[Found]:
    """Results of all jobs, those that decode together at a time; each batch is kept under `<stage>-<number>`."""
    size = max(1, PassBudget.for_(model).decode_rows // n_prompts)
    batches = [jobs[i : i + size] for i in range(0, len(jobs), size)]
    results: list[Found] = []
    for number, batch in enumerate(stages.progress(batches, label)):
        results += stages.keep(f"{stage}-{number}", lambda b=batch: tuple(compute(b)), tuple[kind, ...])  # pyright: ignore[reportInvalidTypeForm]
    return results


def _by_arm(arms: Sequence[str], results: Sequence[Found]) -> dict[str, tuple[Found, ...]]:
    """Results of every arm, which stand arm by arm."""
    n = len(results) // len(arms)
    return {arm: tuple(results[i * n : (i + 1) * n]) for i, arm in enumerate(arms)}


def refusal_sweep(
    model: ChatModel,
    directions: Directions,
    answered: Prompts,
    config: Config,
    stages: Stages,
    *,
    stage: str = "steer",
) -> RefusalSweep:
    """Refusal rate of harmless prompts that the model answers, by arm and steered layer (figure 4)."""

    def steered(batch: Sequence[tuple[str, int]]) -> list[Estimate]:
        arms = [
            [directions.arm(arm, layer, coefficient=config.coefficient, inversion=False, seed=config.seed)]
            for arm, layer in batch
        ]
        each = refusal_verdicts_each(
            model, answered, arms, substrings="zhao", max_new_tokens=config.max_new_tokens
        )
        return [verdicts.rate for verdicts in each]

    layers = tuple(range(0, model.n_layers, config.steer_every))
    rates = _in_batches(
        model,
        [(arm, layer) for arm in REFUSAL_ARMS for layer in layers],
        steered,
        Estimate,
        n_prompts=len(answered),
        stage=stage,
        label="steering towards refusal",
        stages=stages,
    )
    return RefusalSweep(layers=layers, n=len(answered), rates=_by_arm(REFUSAL_ARMS, rates))


def choose_question(
    model: ChatModel, harmful: Sequence[str], harmless: Sequence[str], *, max_new_tokens: int
) -> QuestionChoice:
    """The question that the unsteered model answers best on validation prompts, and how it answers each."""
    table = baselines(model, harmful=harmful, harmless=harmless, max_new_tokens=max_new_tokens)
    best = max(table, key=lambda row: (row.gap, -row.question))
    return QuestionChoice(question=best.question, gap=best.gap, table=table)


def inversion_sweep(
    model: ChatModel,
    directions: Directions,
    prompts: Mapping[str, Sequence[str]],
    question: int,
    config: Config,
    stages: Stages,
    *,
    stage: str = "invert",
) -> InversionSweep:
    """Share of "No" by kind of prompt, arm and steered layer (figure 5), with the unsteered answers.

    Args:
        prompts: `harmless` and `harmful` ones.
    """
    layers = tuple(range(0, model.n_layers, config.invert_every))

    def of_kind(kind: str) -> InversionArms:
        tokens, names = ask(model, prompts[kind], INVERSIONS[question]), INVERSION_ARMS[kind]

        def steered(batch: Sequence[tuple[str, int]]) -> list[Verdicts]:
            arms = [
                []
                if arm == "baseline"
                else [
                    directions.arm(
                        arm, layer, coefficient=config.invert_coefficient, inversion=True, seed=config.seed
                    )
                ]
                for arm, layer in batch
            ]
            return verdicts_each(model, tokens, arms, max_new_tokens=config.verdict_tokens)

        verdicts = _in_batches(
            model,
            [("baseline", 0), *((arm, layer) for arm in names for layer in layers)],
            steered,
            Verdicts,
            n_prompts=len(tokens),
            stage=f"{stage}-{kind}",
            label=f"inverted question, {kind} prompts",
            stages=stages,
        )
        return InversionArms(baseline=verdicts[0], arms=_by_arm(names, verdicts[1:]))

    return InversionSweep(layers=layers, harmless=of_kind("harmless"), harmful=of_kind("harmful"))


def position_sweep(
    model: ChatModel,
    vectors: Float[Tensor, "role layer d_model"],
    harmless: Sequence[str],
    question: int,
    config: Config,
    stages: Stages,
) -> PositionSweep:
    """Verdicts on harmless prompts steered before the question with each source position's direction (figure 16)."""
    tokens = ask(model, harmless, INVERSIONS[question])
    layers = tuple(range(0, model.n_layers, 2 * config.invert_every))

    def steered(batch: Sequence[tuple[int, int]]) -> list[Verdicts]:
        arms = [
            [
                Add(
                    direction=vectors[role, layer],
                    layers=(layer,),
                    coefficient=config.invert_coefficient,
                    positions=BEFORE_QUESTION,
                    new_tokens="none",
                )
            ]
            for role, layer in batch
        ]
        return verdicts_each(model, tokens, arms, max_new_tokens=config.verdict_tokens)

    verdicts = _in_batches(
        model,
        [(role, layer) for role in range(len(vectors)) for layer in layers],
        steered,
        Verdicts,
        n_prompts=len(harmless),
        stage="position",
        label="directions of other positions",
        stages=stages,
    )
    rows = [verdicts[i : i + len(layers)] for i in range(0, len(verdicts), len(layers))]
    return PositionSweep(layers=layers, verdicts=tuple(map(tuple, rows)))
