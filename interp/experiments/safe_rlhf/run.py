"""Harm, categories, severity and preferences of PKU-SafeRLHF in a model's states at the last token of answers.

1. Pairs, split by prompt; both answers of each are read by the model in its own chat template.
2. Harm direction: mean over mixed pairs, same prompt, of the unsafe answer's state minus the safe one's, at every
   layer; measured on held-out mixed pairs, with the signs of the training pairs shuffled as control, and beside the
   refusal direction of prompts (Arditi et al. 2024, arXiv:2406.11717): safe answers are often refusals.
3. Category directions with the shared part taken out, beside the correlation of the labels.
4. Severity within unsafe answers: along the harm direction, in any direction, without it; baselines.
5. Helpful and harmless: two probes on differences, told apart on pairs in conflict.
6. Moderation in the form of the paper's table: a detector on the states, calibrated, and words alone as the baseline.

Data and labels: Ji et al. 2025, arXiv:2406.15513.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.data.prompts import PromptSet
from interp.data.safe_rlhf import (
    CATEGORIES,
    Answer,
    Pair,
    answers_of,
    check_copy,
    counts,
    read_pairs,
    split_by_prompt,
)
from interp.data.safe_rlhf_miniature import miniature
from interp.detectors.detector import calibrated_threshold, check_calibration
from interp.detectors.moderation import Moderation, SeverityModerator
from interp.detectors.moderation_scores import moderation_scores
from interp.detectors.moderation_words import WordsModerator
from interp.directions import cosine, difference_in_means, project
from interp.experiments.definition import Outcome
from interp.experiments.safe_rlhf import Config, PublishedCount, Result
from interp.models.chat_model import ChatModel
from interp.representations.answer_states import answer_states, readable_rows
from interp.representations.beliefs import states
from interp.representations.severity import (
    AnswerFeatures,
    best_layer,
    category_directions,
    category_geometry,
    harm_directions,
    preference_readings,
    severity_readings,
    shuffled_signs,
)
from interp.representations.severity_records import SeverityReading
from interp.stats import rate
from interp.storage.stages import Stages

STATES = "severity moderator"
"""The moderator on states."""
WORDS = "words alone"
"""The baseline: TF-IDF of prompt and answer."""
MINIATURE_PAIRS = 5
"""Mixed pairs that a category of the miniature needs."""


class Data(NamedTuple):
    """Pairs whose answers can both be read, to fit on and held out."""

    fit: list[Pair]
    held: list[Pair]
    every: list[Pair]
    """All pairs of the data."""
    unread: int
    """Answers that cannot be read."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Read:
    """States of both answers of pairs."""

    pairs: list[Pair]
    states: Float[Tensor, "pair answer layer d_model"]

    def unsafe_and_safe(self) -> tuple[Tensor, Tensor]:
        """States of the unsafe and of the safe answers of mixed pairs."""
        rows = [row for row, pair in enumerate(self.pairs) if pair.mixed]
        unsafe = [int(self.pairs[row].answers[0].safe) for row in rows]
        return self.states[rows, unsafe], self.states[rows, [1 - i for i in unsafe]]

    def answers(self) -> list[Answer]:
        """Both answers of every pair, in the order of `flat`."""
        return [answer for pair in self.pairs for answer in pair.answers]

    def flat(self, layer: int) -> Float[Tensor, "answer d_model"]:
        """States of both answers of every pair at one layer."""
        return self.states[:, :, layer].flatten(0, 1)


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run the readings.

    Raises:
        ValueError: data that cannot be read, or too few pairs of a kind.
    """
    # 1. Pairs and states.
    data = _data(model, config)
    _check(model, data, config)
    fit, held = (
        Read(
            pairs=pairs,
            states=stages.keep(name, lambda p=pairs: {"states": _states(model, p, stages)})["states"],
        )
        for name, pairs in (("fit-states", data.fit), ("held-out-states", data.held))
    )
    stages.lap("states")

    # 2. Harm direction.
    unsafe, safe = fit.unsafe_and_safe()
    held_unsafe, held_safe = held.unsafe_and_safe()
    harm = harm_directions(unsafe, safe)
    layer = best_layer(unsafe, safe, harm) if config.layer == "best" else config.layer
    above = project(held_unsafe - held_safe, harm) > 0
    control_signs = shuffled_signs(unsafe - safe, held_unsafe - held_safe, seed=config.seed)
    refusal = _refusal_directions(model, prompts, config)
    stages.lap("harm direction")

    # 3. Categories.
    flags = np.array([_unsafe_of(pair).categories for pair in fit.pairs if pair.mixed])
    minimum = MINIATURE_PAIRS if not config.data else config.min_pairs
    found = category_directions((unsafe - safe)[:, layer], flags, CATEGORIES, min_pairs=minimum)
    used = [CATEGORIES.index(name) for name in found.names]
    every_flag = np.array([a.categories for a in answers_of(data.every) if not a.safe])[:, used]
    stages.lap("categories")

    # 4. Severity.
    severity, shuffled = _severities(_features(fit, layer), _features(held, layer), harm[layer], config)
    stages.lap("severity")

    # 5. Preferences.
    preferences, angle = preference_readings(
        *_differences(fit, layer), *_differences(held, layer), l2=config.l2, n_components=config.n_components
    )
    stages.lap("preferences")

    # 6. Moderation.
    moderation = {
        name: moderation_scores(held.answers(), said)
        for name, said in _moderate(model, fit, held, layer, config).items()
    }
    stages.lap("moderation")
    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        data=config.data or "bundled miniature",
        miniature=not config.data,
        counts=dict(counts([*data.fit, *data.held])),
        published=_published(data.every, config),
        unread=data.unread,
        layer=layer,
        told_apart=tuple(rate(above[:, i].tolist()) for i in range(above.shape[1])),
        told_apart_shuffled=tuple(control_signs.told_apart.tolist()),
        norm_ratio=tuple(control_signs.norm_ratio.tolist()),
        length_gap=_length_gap(fit.pairs),
        cosine_with_refusal=tuple(cosine(harm, refusal).tolist()),
        categories=category_geometry(found, every_flag),
        severity=severity,
        severity_shuffled=shuffled["all directions"],
        preferences=preferences,
        preference_cosine=angle,
        moderation=moderation,
    )
    tensors = {"harm": harm, "refusal": refusal, "categories": found.directions, "categories_own": found.own}
    return Outcome(result=result, tensors=tensors)


def _check(model: ChatModel, data: Data, config: Config) -> None:
    """Refuse what cannot be read, before any answer is."""
    if config.layer != "best":
        model.layer(config.layer, upper=model.n_layers + 1)
    fit, held = (sum(pair.mixed for pair in pairs) for pairs in (data.fit, data.held))
    if fit < 8 or held < 4:
        raise ValueError(f"there are {fit} mixed pairs to fit on and {held} held out; give more pairs")


def _data(model: ChatModel, config: Config) -> Data:
    every = read_pairs(config.data) if config.data else miniature()
    chosen = random.Random(config.seed).sample(every, min(config.n_pairs, len(every)))
    answers = [answer for pair in chosen for answer in pair.answers]
    rows = set(readable_rows(model, [a.prompt for a in answers], [a.text for a in answers]))
    kept = [pair for i, pair in enumerate(chosen) if {2 * i, 2 * i + 1} <= rows]
    fit, held = split_by_prompt(kept, held_out=config.held_out, seed=config.seed)
    return Data(fit, held, every, len(answers) - len(rows))


def _states(
    model: ChatModel, pairs: Sequence[Pair], stages: Stages
) -> Float[Tensor, "pair answer layer d_model"]:
    answers = [answer for pair in pairs for answer in pair.answers]
    read = answer_states(
        model, [a.prompt for a in answers], [a.text for a in answers], show_progress=stages.show_progress
    )
    return read.float().unflatten(0, (len(pairs), 2)).contiguous()


def _refusal_directions(
    model: ChatModel, prompts: PromptSet, config: Config
) -> Float[Tensor, "layer d_model"]:
    """Difference in means of harmful and harmless training prompts at `t_post_inst`, at every layer."""
    read = [
        states(model, prompts[kind, "train"].first(config.n_directions), positions="t_post_inst")[:, :, 0]
        for kind in ("harmful", "harmless")
    ]
    return difference_in_means(read[0], read[1])


def _unsafe_of(pair: Pair) -> Answer:
    """The unsafe answer of a mixed pair."""
    return pair.answers[int(pair.answers[0].safe)]


def _words(answer: Answer) -> int:
    return len(answer.text.split())


def _length_gap(pairs: Sequence[Pair]) -> float:
    gaps = [
        _words(_unsafe_of(pair)) - _words(pair.answers[int(pair.answers[1].safe)])
        for pair in pairs
        if pair.mixed
    ]
    return float(np.mean(gaps))


def _severities(
    fit: AnswerFeatures, held_out: AnswerFeatures, harm: Float[Tensor, " d_model"], config: Config
) -> tuple[dict[str, SeverityReading], dict[str, SeverityReading]]:
    """Severity predicted from states, and the same fitted on shuffled levels as control."""
    direction = harm.double().numpy()

    def readings(features: AnswerFeatures) -> dict[str, SeverityReading]:
        return severity_readings(
            features,
            held_out,
            direction,
            l2=config.l2,
            n_components=config.n_components,
            seed=config.seed,
        )

    mixed_up = np.random.default_rng(config.seed).permutation(fit.levels)
    return readings(fit), readings(fit._replace(levels=mixed_up))


def _features(read: Read, layer: int) -> AnswerFeatures:
    """Unsafe answers with a severity of 1 or more."""
    answers, flat = read.answers(), read.flat(layer).double().numpy()
    rows = [row for row, answer in enumerate(answers) if not answer.safe and answer.severity > 0]
    return AnswerFeatures(
        states=flat[rows],
        flags=np.array([answers[row].categories for row in rows]),
        lengths=np.array([float(_words(answers[row])) for row in rows]),
        levels=np.array([answers[row].severity for row in rows]),
    )


def _differences(read: Read, layer: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """State of answer 1 minus that of answer 0, and whether answer 1 is preferred."""
    labels = {
        "better": np.array([pair.better == 1 for pair in read.pairs]),
        "safer": np.array([pair.safer == 1 for pair in read.pairs]),
    }
    at = read.states[:, :, layer].double().numpy()
    return at[:, 1] - at[:, 0], labels


def _moderate(
    model: ChatModel, fit: Read, held: Read, layer: int, config: Config
) -> dict[str, list[Moderation]]:
    """Findings on held-out answers by the moderator on states, as fitted and calibrated, and by words alone."""
    to_fit, to_calibrate = split_by_prompt(fit.pairs, held_out=0.25, seed=config.seed + 1)
    of = {id(pair): row for row, pair in enumerate(fit.pairs)}

    def part(pairs: Sequence[Pair]) -> Read:
        return Read(pairs=list(pairs), states=fit.states[[of[id(pair)] for pair in pairs]])

    smaller, safe = part(to_fit), part(to_calibrate)
    moderator = SeverityModerator.fit_to(
        smaller.flat(layer),
        smaller.answers(),
        layer=layer,
        l2=config.l2,
        n_components=config.n_components,
        fitted_on=model.provenance,
    )
    ids = [answer.id for answer in held.answers()]
    found = {STATES: moderator.detect(held.flat(layer), ids)}
    words = WordsModerator.fit(smaller.answers(), l2=config.l2)
    found[WORDS] = words.detect(held.answers())
    rows = [row for row, answer in enumerate(safe.answers()) if answer.safe]
    check_calibration(len(rows), config.false_positive_rate, of="safe answers")
    scores = [
        each.harmfulness for each in moderator.detect(safe.flat(layer)[rows], [str(row) for row in rows])
    ]
    limit = calibrated_threshold(scores, config.false_positive_rate)
    found[f"{STATES}, calibrated"] = moderator.with_threshold(limit).detect(held.flat(layer), ids)
    return found


def _published(pairs: Sequence[Pair], config: Config) -> tuple[PublishedCount, ...]:
    if not config.data:
        return ()
    return tuple(
        PublishedCount(what=each.what, published=each.published, found=each.found, holds=each.holds)
        for each in check_copy(pairs)
    )
