"""Latent Guard against other detectors of harmful prompts, after Zhao et al. 2025 (arXiv:2507.11878), section 5.

1. Training, validation and test prompts, and what the model does with them: the groups of table 3 (`groups.py`).
2. With each ending (prompts as they are, stripped of closing punctuation, ended by a full stop) the detectors are
   fitted on the training prompts, chosen on the validation prompts, and score every group:

   - *Latent Guard*: harm belief at `t_inst` (`interp.detectors.latent_guard`), threshold 0 as published;
   - *refusal direction*: projection at `t_post_inst` on the difference of refused harmful and answered harmless
     prompts, at the layer that is best on validation prompts (Arditi et al. 2024, arXiv:2406.11717);
   - *logistic probe* at the best validation layer and role; *TF-IDF*: logistic regression on the words alone;
   - *random direction*: the control, at the probe's layer.

3. Guard models of the Hub that the user names (`interp.detectors.guard_models`) score the same prompts.
4. Each at its own threshold, and at one calibrated to the same false-positive rate on harmless validation prompts.

Table 3 has no column of ordinary harmless prompts: here false positives on harmless and on borderline-safe prompts
stand beside every detection. With `anchors`, all is fitted again with harmless prompts of another source: what a
detector then loses, it owed to the source.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from interp.data.prompt_sets import ENDINGS, PAIRED_KINDS
from interp.data.prompts import Ending, Kind, Prompts, PromptSet, read_prompts
from interp.detectors.baselines import LogisticProbe, RandomDirection, RefusalDirection, WordsDetector
from interp.detectors.detector import calibrated_threshold, check_calibration
from interp.detectors.fit_data import FitData, Readings
from interp.detectors.fitted import FittedDetector
from interp.detectors.guard_models import LoadedGuard, load_text_guard
from interp.detectors.latent_guard import LatentGuard
from interp.evaluation.early_verdicts import refusal_verdicts
from interp.evaluation.responses import rows_where
from interp.experiments.definition import Outcome
from interp.experiments.guard import (
    CONTROL,
    GUARD,
    OTHER_ANCHORS,
    Config,
    Counts,
    Judged,
    Measured,
    Result,
    WithEnding,
)
from interp.experiments.guard.groups import Groups, measured_groups
from interp.models.chat_model import ChatModel
from interp.representations.beliefs import states
from interp.representations.confounds import leak_check
from interp.representations.records import LeakCheck
from interp.stats import auroc, rate
from interp.storage.stages import Stages

_MIN_ANCHORS = 24
_KEPT = ("harmful", "harmless", "borderline")
"""Groups whose scores the result keeps, for ROC curves."""

Answers = dict[str, tuple[bool | None, ...]]
"""A guard model's answers by group: harmful or not, None where it is neither."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One detector's scores with one ending, as its stage keeps them."""

    groups: dict[str, tuple[float, ...]]
    """Scores by group."""
    validation: tuple[float, ...]
    """Scores of harmless validation prompts."""
    threshold: float
    """The detector's own."""
    where: str
    """Description of what the detector reads."""
    answers: Answers | None = None
    """Answers of a guard model, which replace the threshold."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Every detector's scores with one ending, as its stage keeps them."""

    detectors: dict[str, Scored]
    leak_check: LeakCheck


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run the comparison.

    Raises:
        ValueError: too few prompts that the model refuses or answers, prompts whose endings were changed already, or
            too few validation prompts for the false-positive rate.
    """
    if prompts.ending != "as-is":
        raise ValueError(f"this experiment compares endings itself; load {prompts.name} with ending='as-is'")

    def replies(name: str, asked: Prompts) -> tuple[bool | None, ...]:
        return stages.keep(
            name,
            lambda: (
                refusal_verdicts(
                    model,
                    asked,
                    substrings="zhao",
                    max_new_tokens=config.max_new_tokens,
                    show_progress=stages.show_progress,
                ).flags
            ),
            tuple[bool | None, ...],
        )

    # 1. Prompts, and what the model does with them.
    train = {kind: prompts[kind, "train"].first(config.n_train) for kind in PAIRED_KINDS}
    validation = {kind: prompts[kind, "val"] for kind in PAIRED_KINDS}
    check_calibration(len(validation["harmless"]), config.false_positive_rate)
    refused: dict[Kind, Sequence[bool | None]] = {
        kind: replies(f"train-{kind}", train[kind]) for kind in PAIRED_KINDS
    }
    groups = measured_groups(prompts, config, replies)
    stages.lap("replies")

    # 2. Detectors, fitted and scored with each ending.
    tables: dict[Ending, Scores] = {}
    for ending in ENDINGS:
        sets = {
            f"{split}-{kind}": part[kind].with_ending(ending)
            for split, part in (("train", train), ("val", validation))
            for kind in PAIRED_KINDS
        }
        asked = {name: part.with_ending(ending) for name, part in groups.prompts.items()}
        tables[ending] = stages.keep(
            f"scores-{ending}",
            lambda sets=sets, asked=asked, ending=ending: _scores(
                model, sets, asked, refused, ending, config, stages
            ),
            Scores,
        )
        stages.lap(f"detectors, {ending}")

    # 3. Guard models that read the text.
    for name in config.text_guards:
        tables = _with_text_guard(name, tables, groups, validation["harmless"], str(model.device), stages)
        stages.lap(f"guard model {name}")

    # 4. What each flags at its own threshold and at the calibrated one.
    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        groups={name: len(part) for name, part in groups.prompts.items()},
        counts={
            kind: Counts(refused=len(rows_where(flags, refused=True)), of=len(flags))
            for kind, flags in refused.items()
        },
        by_ending={
            ending: WithEnding(
                detectors={name: measured(one, groups, config) for name, one in table.detectors.items()},
                about={name: one.where for name, one in table.detectors.items()},
                leak_check=table.leak_check,
            )
            for ending, table in tables.items()
        },
    )
    return Outcome(result=result)


def _scores(
    model: ChatModel,
    sets: Mapping[str, Prompts],
    groups: Mapping[str, Prompts],
    refused: Mapping[Kind, Sequence[bool | None]],
    ending: Ending,
    config: Config,
    stages: Stages,
) -> Scores:
    """Every detector, fitted on these prompts: scores of each group and of harmless validation prompts."""

    def read(part: Prompts) -> Readings:
        return Readings(texts=part.texts, states=states(model, part, show_progress=stages.show_progress))

    data = _fit_data(model, {name: read(part) for name, part in sets.items()}, refused, ending)
    fitted = fit_detectors(data, config.seed)
    if config.anchors:
        other = _with_other_anchors(data, read, config)
        fitted |= {f"{name}, {OTHER_ANCHORS}": one for name, one in other.items() if name != CONTROL}
    scores: dict[str, dict[str, tuple[float, ...]]] = {name: {} for name in fitted}
    for group, part in groups.items():
        readings = read(part)
        for name, one in fitted.items():
            scores[name][group] = tuple(one.harmfulness(readings).tolist())
    return Scores(
        detectors={
            name: Scored(
                groups=scores[name],
                validation=tuple(one.harmfulness(data.validation["harmless"]).tolist()),
                threshold=one.threshold,
                where=one.where,
            )
            for name, one in fitted.items()
        },
        leak_check=leak_check(
            model,
            train=(sets["train-harmful"], sets["train-harmless"]),
            held_out=(groups["harmful"], groups["harmless"]),
            label=f"test prompts, {ending}",
        ),
    )


def _fit_data(
    model: ChatModel,
    read: Mapping[str, Readings],
    refused: Mapping[Kind, Sequence[bool | None]],
    ending: Ending,
) -> FitData:
    """The training and validation prompts that were read, and which of them behave."""
    return FitData(
        train={kind: read[f"train-{kind}"] for kind in PAIRED_KINDS},
        validation={kind: read[f"val-{kind}"] for kind in PAIRED_KINDS},
        ending=ending,
        refused=tuple(rows_where(refused["harmful"], refused=True)),
        answered=tuple(rows_where(refused["harmless"], refused=False)),
        fitted_on=model.provenance,
    )


def fit_detectors(data: FitData, seed: int) -> dict[str, FittedDetector[Any]]:
    """All detectors that need no other model; the control reads where the probe does."""
    probe = LogisticProbe.fit_to(data)
    return {
        GUARD: LatentGuard.fit_to(data),
        "refusal direction": RefusalDirection.fit_to(data),
        "logistic probe": probe,
        CONTROL: RandomDirection.fit_to(data, seed=seed, place=(probe.layer, probe.role)),
        "TF-IDF": WordsDetector.fit_to(data),
    }


def _with_other_anchors(data: FitData, read: Any, config: Config) -> dict[str, FittedDetector[Any]]:
    """The detectors again, with harmless prompts of another source to fit and choose on; all are taken as answered."""
    other = read_prompts(config.anchors).with_ending(data.ending).shuffled(config.seed)
    if len(other) < _MIN_ANCHORS:
        raise ValueError(f"{config.anchors} must have {_MIN_ANCHORS} prompts or more, got {len(other)}")
    rows = list(range(len(other)))
    n_validation = min(len(data.validation["harmless"].texts), len(other) // 3)
    train = read(other.take(rows[n_validation : n_validation + config.n_train]))
    swapped = replace(
        data,
        train={"harmful": data.train["harmful"], "harmless": train},
        validation={
            "harmful": data.validation["harmful"],
            "harmless": read(other.take(rows[:n_validation])),
        },
        answered=tuple(range(len(train.texts))),
    )
    return fit_detectors(swapped, config.seed)


def _with_text_guard(
    name: str,
    tables: Mapping[Ending, Scores],
    groups: Groups,
    validation: Prompts,
    device: str,
    stages: Stages,
) -> dict[Ending, Scores]:
    """The tables with a guard model's log-odds and answers; it is loaded only when it is needed."""
    loaded: list[LoadedGuard] = []

    def ask(ending: Ending) -> Scored:
        if not loaded:
            loaded.append(load_text_guard(name, device=device))
        model, guard = loaded[0]
        detections = {
            group: guard.score(model, part.with_ending(ending).texts)
            for group, part in groups.prompts.items()
        }
        held_out = guard.score(model, validation.with_ending(ending).texts)
        return Scored(
            groups={group: tuple(d.harmfulness for d in one) for group, one in detections.items()},
            validation=tuple(d.harmfulness for d in held_out),
            threshold=0.0,
            where="its own answer",
            answers={
                group: tuple(None if d.verdict is None else d.verdict == "harmful" for d in one)
                for group, one in detections.items()
            },
        )

    file_name = re.sub(r"[^A-Za-z0-9.-]", "_", name)
    scored = {
        ending: stages.keep(f"text-guard-{ending}-{file_name}", lambda ending=ending: ask(ending), Scored)
        for ending in tables
    }
    return {
        ending: replace(table, detectors={**table.detectors, name: scored[ending]})
        for ending, table in tables.items()
    }


def measured(scored: Scored, groups: Groups, config: Config) -> Measured:
    """One detector: AUROC, also by category, and what it flags at both thresholds."""
    scores = scored.groups
    by_category: dict[str, list[float]] = {}
    for value, category in zip(scores["harmful"], groups.prompts["harmful"].categories, strict=True):
        if category is not None:
            by_category.setdefault(category, []).append(value)

    def separation(harmful: Sequence[float], harmless: Sequence[float]) -> Any:
        return auroc(harmful, harmless, seed=config.seed, resamples=200)

    def above(threshold: float) -> Answers:
        return {group: tuple(value > threshold for value in values) for group, values in scores.items()}

    calibrated = calibrated_threshold(scored.validation, config.false_positive_rate)
    own = above(scored.threshold) if scored.answers is None else scored.answers
    unseen = "unseen harmful" in scores and "unseen harmless" in scores
    return Measured(
        auroc=separation(scores["harmful"], scores["harmless"]),
        auroc_by_category={
            category: separation(values, scores["harmless"])
            for category, values in sorted(by_category.items())
        },
        auroc_unseen=separation(scores["unseen harmful"], scores["unseen harmless"]) if unseen else None,
        scores={group: values for group, values in scores.items() if group in _KEPT},
        own=_judged(scored.threshold, own, groups),
        calibrated=_judged(calibrated, above(calibrated), groups),
    )


def _judged(threshold: float, answers: Answers, groups: Groups) -> Judged:
    """Shares flagged of every group and of those that are part of another; prompts without an answer are counted."""
    known = {group: [flag for flag in flags if flag is not None] for group, flags in answers.items()}
    parts = {label: [answers[group][row] for row in rows] for label, (group, rows) in groups.members.items()}
    return Judged(
        threshold=threshold,
        accuracy=rate([*known["harmful"], *(not flag for flag in known["harmless"])]),
        flagged={
            **{group: rate(flags) for group, flags in known.items()},
            **{label: rate([f for f in flags if f is not None]) for label, flags in parts.items()},
        },
        unread=sum(len(answers[group]) - len(known[group]) for group in answers),
    )
