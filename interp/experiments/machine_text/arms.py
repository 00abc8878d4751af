"""What the model writes under interventions, and what that does to its detectability."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.data.prompts import Prompts
from interp.directions import random_direction, unit
from interp.engine.generation import generate
from interp.engine.interventions import Ablate, Add, Intervention
from interp.evaluation.refusals import refusal_rate
from interp.experiments.machine_text import (
    ABLATED,
    AGAINST,
    ALONG,
    ARMS,
    ORDER,
    PLAIN,
    RANDOM_ABLATED,
    RANDOM_AGAINST,
    RANDOM_ALONG,
    RANDOM_REFUSAL,
    REFUSAL,
    Config,
)
from interp.experiments.machine_text.estimates import area, finite, paired_change, share_above
from interp.experiments.machine_text.results import Arm, Effects
from interp.experiments.machine_text.study import Study
from interp.experiments.machine_text.texts import Readings, Twins, Written, by_id, read, twins
from interp.models.chat_model import ChatModel
from interp.stats import Estimate
from interp.storage.stages import Stages

_REPLY_TOKENS = 16


@dataclass(frozen=True, eq=False, kw_only=True)
class Directions:
    """Directions of the interventions, at one layer."""

    layer: int
    """Layer at which they were read and are added."""
    machine: Float[Tensor, " d_model"]
    """The machine-text direction."""
    refusal: Float[Tensor, " d_model"]
    """The refusal direction."""


def interventions(directions: Directions, config: Config) -> dict[str, list[Intervention]]:
    """By arm, in their order; controls have the norm, layer and place of what they are a control of."""
    layer, machine, refusal = directions.layer, directions.machine, directions.refusal
    like_machine = random_direction(machine, seed=config.seed)
    like_refusal = random_direction(refusal, seed=config.seed + 1)

    def add(vector: Float[Tensor, " d_model"], coefficient: float) -> list[Intervention]:
        return [Add(vector, coefficient=coefficient, layers=layer)]

    dose = float(config.dose)
    made: dict[str, list[Intervention]] = {
        PLAIN: [],
        ALONG: add(machine, dose),
        RANDOM_ALONG: add(like_machine, dose),
        AGAINST: add(machine, -dose),
        RANDOM_AGAINST: add(like_machine, -dose),
        ABLATED: [Ablate(unit(refusal))],
        RANDOM_ABLATED: [Ablate(unit(like_refusal))],
        REFUSAL: add(refusal, 1.0),
        RANDOM_REFUSAL: add(like_refusal, 1.0),
    }
    return {name: made[name] for name in ARMS}


def arm_twins(study: Study, texts: Written, stages: Stages, stage: str) -> Twins:
    """Texts that were written under interventions, as the model reads them without, beside their human twins."""
    make = partial(read, study.model, texts.machine, show_progress=stages.show_progress)
    readings = Readings.of(stages.keep(stage, lambda: make().tensors))
    return twins(study.humans, by_id(readings, texts.ids), limits=study.config.length)


def compare_arms(
    by_arm: Mapping[str, Twins], limits: Mapping[str, float | None], config: Config
) -> dict[str, Arm]:
    """Every arm beside the one without intervention.

    Args:
        limits: threshold by detector; None is none.
    """
    scores = {
        name: {title: dict(zip(own.ids, own.column(title)[0], strict=True)) for title in ORDER}
        for name, own in by_arm.items()
    }
    units = human_spread(by_arm[PLAIN])
    return {
        name: Arm(
            n=len(own),
            scores={title: dict(values) for title, values in scores[name].items()},
            auroc={title: area(*own.column(title), seed=config.seed) for title in ORDER},
            change={
                title: paired_change(
                    scores[name][title], scores[PLAIN][title], unit_of=units[title], seed=config.seed
                )
                for title in ORDER
            },
            found={title: share_above(own.column(title)[0], limits[title]) for title in ORDER},
        )
        for name, own in by_arm.items()
    }


def human_spread(twins_: Twins) -> dict[str, float]:
    """Standard deviation of the human texts' scores, by detector; 1 where all score the same."""
    return {title: float(np.std(finite(twins_.column(title)[1]) or [0.0])) or 1.0 for title in ORDER}


def effects(
    model: ChatModel,
    requests: Prompts,
    arms: Mapping[str, Arm],
    by_arm: Mapping[str, Twins],
    acting: Mapping[str, Sequence[Intervention]],
    config: Config,
) -> Effects:
    """Contrasts between arms, and whether the refusal arms change refusals at all."""
    units = human_spread(by_arm[PLAIN])

    def contrast(first: str, second: str) -> dict[str, Estimate]:
        return {
            title: paired_change(
                present(arms[first].scores[title]),
                present(arms[second].scores[title]),
                unit_of=units[title],
                seed=config.seed,
            )
            for title in ORDER
        }

    return Effects(
        steered=contrast(ALONG, AGAINST),
        steered_random=contrast(RANDOM_ALONG, RANDOM_AGAINST),
        ablated=contrast(ABLATED, RANDOM_ABLATED),
        added=contrast(REFUSAL, RANDOM_REFUSAL),
        refused={
            name: refusal_rate(
                generate(
                    model,
                    requests,
                    interventions=acting[name],
                    max_new_tokens=_REPLY_TOKENS,
                ),
                "arditi",
            )
            for name in (PLAIN, ABLATED, RANDOM_ABLATED)
        },
    )


def present(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores that are there."""
    return {name: value for name, value in scores.items() if math.isfinite(value)}
