"""Steering along the harmfulness and the refusal direction, one layer at a time: what each does to behaviour.

    h^l <- h^l + c v^l        at the input of block l, at prompt tokens only

Source: Zhao et al. 2025, arXiv:2507.11878, section 3 (figures 4, 5, 10 and 16). Controls: a random direction with each
one's norm, and the refusal direction at instruction tokens alone, which does next to nothing there and would feign a
dissociation if it were compared with the harmfulness direction at the same tokens.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from interp.data.prompts import Prompts
from interp.directions import random_direction
from interp.engine.budgets import PassBudget
from interp.engine.interventions import Add
from interp.evaluation.responses import respond_each
from interp.experiments.harmfulness.reply_inversion import INVERSIONS, ask, baselines, verdicts_each
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, Positions

BEFORE_QUESTION: Positions = ("prefix", "instruction")
RANDOM = ("random, harmfulness norm", "random, refusal norm")
ON_INSTRUCTION = "refusal, instruction tokens only"
Keep = Callable[[str, Callable[[], Any]], Any]
Watch = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Directions:
    """The two directions of every layer, at their natural lengths."""

    harmfulness: Float[Tensor, "layer d_model"]
    """Refused harmful minus accepted harmless at `t_inst`."""
    refusal: Float[Tensor, "layer d_model"]
    """The same groups at `t_post_inst`."""

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
            steps="prompt",
        )


REFUSAL_ARMS = ("harmfulness", "refusal", ON_INSTRUCTION, *RANDOM)
INVERSION_ARMS = {
    "harmless": ("+harmfulness", "+refusal", "-refusal", "+" + ON_INSTRUCTION, *RANDOM),
    "harmful": ("-harmfulness", "-refusal", "+refusal", "-" + ON_INSTRUCTION, *RANDOM),
}
"""Figure 5a steers harmless prompts, figure 5b harmful ones."""


T = TypeVar("T")


def _grouped(model: ChatModel, jobs: Sequence[T], prompts: int) -> list[Sequence[T]]:
    """Jobs that decode together."""
    size = max(1, PassBudget.for_(model).decode_rows // prompts)
    return [jobs[i : i + size] for i in range(0, len(jobs), size)]


def refusal_sweep(
    model: ChatModel,
    directions: Directions,
    answered: Prompts,
    *,
    layers: Sequence[int],
    coefficient: float,
    max_new_tokens: int,
    seed: int,
    keep: Keep,
    watch: Watch,
) -> dict[str, Any]:
    """Refusal rate of harmless prompts that the model answers, by arm and steered layer (figure 4)."""

    def steered(group: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        arms = [
            [directions.arm(arm, layer, coefficient=coefficient, inversion=False, seed=seed)]
            for arm, layer in group
        ]
        return [
            seen.rate.as_dict()
            for seen in respond_each(model, answered, arms, substrings="zhao", max_new_tokens=max_new_tokens)
        ]

    groups = _grouped(model, [(arm, layer) for arm in REFUSAL_ARMS for layer in layers], len(answered))
    rates: dict[str, list[Any]] = {arm: [] for arm in REFUSAL_ARMS}
    for number, group in enumerate(watch(groups, "steering towards refusal")):
        found = keep(f"steer-{number}", lambda g=group: steered(g))
        for (arm, _), entry in zip(group, found, strict=True):
            rates[arm].append(entry)
    return {"layers": list(layers), "n": len(answered), "rates": rates}


def choose_question(
    model: ChatModel, harmful: Sequence[str], harmless: Sequence[str], *, max_new_tokens: int
) -> dict[str, Any]:
    """The question that the unsteered model answers best on validation prompts, and how it answers each."""
    table = baselines(model, harmful=harmful, harmless=harmless, max_new_tokens=max_new_tokens)
    best = max(table, key=lambda row: (row["gap"], -row["question"]))
    return {"question": best["question"], "gap": best["gap"], "table": table}


def inversion_sweep(
    model: ChatModel,
    directions: Directions,
    prompts: Mapping[str, Sequence[str]],
    *,
    question: int,
    layers: Sequence[int],
    coefficient: float,
    max_new_tokens: int,
    seed: int,
    keep: Keep,
    watch: Watch,
) -> dict[str, Any]:
    """Share of "No" by kind of prompt, arm and steered layer (figure 5), with the unsteered answers."""
    found: dict[str, Any] = {"layers": list(layers)}
    for kind, texts in prompts.items():
        tokens = ask(model, texts, INVERSIONS[question])

        def steered(group: Sequence[tuple[str, int]], tokens: ChatTokens = tokens) -> list[dict[str, Any]]:
            arms = [
                [directions.arm(arm, layer, coefficient=coefficient, inversion=True, seed=seed)]
                if arm != "baseline"
                else []
                for arm, layer in group
            ]
            return verdicts_each(model, tokens, arms, max_new_tokens=max_new_tokens)

        jobs = [("baseline", 0), *((arm, layer) for arm in INVERSION_ARMS[kind] for layer in layers)]
        verdicts: list[dict[str, Any]] = []
        for number, group in enumerate(
            watch(_grouped(model, jobs, len(texts)), f"inverted question, {kind} prompts")
        ):
            verdicts += keep(f"invert-{kind}-{number}", lambda g=group: steered(g))
        by_arm: dict[str, list[Any]] = {arm: [] for arm in INVERSION_ARMS[kind]}
        for (arm, _), entry in zip(jobs[1:], verdicts[1:], strict=True):
            by_arm[arm].append(entry)
        found[kind] = {"baseline": verdicts[0], "arms": by_arm}
    return found


def position_sweep(
    model: ChatModel,
    vectors: Float[Tensor, "role layer d_model"],
    harmless: Sequence[str],
    *,
    question: int,
    layers: Sequence[int],
    coefficient: float,
    max_new_tokens: int,
    keep: Keep,
    watch: Watch,
) -> list[list[dict[str, Any]]]:
    """Verdicts on harmless prompts steered before the question with each source position's direction (figure 16).

    Returns:
        By source position, then by layer.
    """
    tokens = ask(model, harmless, INVERSIONS[question])

    def steered(group: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        arms = [
            [
                Add(
                    direction=vectors[role, layer],
                    layers=(layer,),
                    coefficient=coefficient,
                    positions=BEFORE_QUESTION,
                    steps="prompt",
                )
            ]
            for role, layer in group
        ]
        return verdicts_each(model, tokens, arms, max_new_tokens=max_new_tokens)

    jobs = [(role, layer) for role in range(len(vectors)) for layer in layers]
    found: list[list[dict[str, Any]]] = [[] for _ in range(len(vectors))]
    for number, group in enumerate(
        watch(_grouped(model, jobs, len(harmless)), "directions of other positions")
    ):
        verdicts = keep(f"position-{number}", lambda g=group: steered(g))
        for (role, _), entry in zip(group, verdicts, strict=True):
            found[role].append(entry)
    return found
