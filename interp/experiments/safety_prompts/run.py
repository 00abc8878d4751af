"""The safety-prompt study.

1. The plane: states and refusal probabilities of training queries under none and three safety texts, PCA, two
   regressions; on held-out queries how well both boundaries hold, and what each text moves, beside a neutral text.
   At the end and at several layers; with prompts as they are and with equal endings.
2. Training of the prompt from one text: DRO, its loss without one term at a time, and prompt tuning.
3. Held-out queries under none, the texts, the trained prompts, and a random soft prompt of equal norms: greedy replies,
   first-token refusal probability, KL on the model's own harmless replies, shift in the plane.
4. The vocabulary's nearest tokens to what was trained.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from interp.data.prompt_sets import COMPARED_ENDINGS, PAIRED_KINDS, Ending
from interp.data.prompts import PromptSet, load_prompts
from interp.data.safety_texts import safety_text
from interp.engine.safety_prompts import SafetyPrompt
from interp.engine.stored_activations import using_store
from interp.experiments.definition import Outcome
from interp.experiments.safety_prompts import (
    ABLATIONS,
    DRO,
    NEUTRAL,
    NEUTRAL_TEXT,
    NONE,
    RANDOM,
    TUNED,
    Behaviour,
    Config,
    Geometry,
    NearestToken,
    Result,
    Training,
)
from interp.experiments.safety_prompts.held_out import Reference, behaviour, random_prompt, reference
from interp.experiments.safety_prompts.planes import Fitted, Sides, fit_plane, geometry
from interp.models.chat_model import ChatModel
from interp.representations.safety_states import Conditions, SafetyStates, safety_representations
from interp.storage.stages import Stages, stage_name
from interp.training.config import SafetyPromptConfig
from interp.training.soft_prompts import TrainedPrompt, optimise_prompt, tune_prompt


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run the experiment.

    Raises:
        ValueError: a template without a system slot, or a model that refuses all queries alike.
    """
    start = SafetyPrompt.from_text(model, safety_text(config.start))  # says so where there is no system slot
    train: Sides = {kind: prompts[kind, "train"].first(config.n_train) for kind in PAIRED_KINDS}
    test: Sides = {kind: prompts[kind, "test"].first(config.n_test) for kind in PAIRED_KINDS}

    # 1. The plane.
    planes: dict[Ending, Fitted] = {
        ending: fit_plane(model, train, config, ending) for ending in COMPARED_ENDINGS
    }
    stages.lap("states")
    shown: dict[Ending, Geometry] = {}
    for ending, fitted in stages.progress(planes.items(), "endings"):
        make = partial(geometry, model, fitted, train, test, config, ending)
        shown[ending] = stages.keep(f"geometry-{ending}", make, Geometry)
    stages.lap("geometry")

    # 2. Training. 4. Nearest tokens.
    fitted, folder = planes["as-is"], stages.workspace("prompts")
    training: dict[str, Training] = {}
    for name in stages.progress(config.trained, "trainings"):
        work = _Work(model=model, train=train, fitted=fitted, start=start, config=config, name=name)
        make = partial(_trained, work, _file(folder, name), stages.show_progress)
        training[name] = stages.keep(f"training-{stage_name(name)}", make, Training)
    trained = {name: SafetyPrompt.read(_file(folder, name)) for name in training}
    stages.lap("train")

    # 3. Held-out queries.
    queries = _held_out(test, prompts, config)
    noise = random_prompt(trained[DRO], seed=config.seed)
    asked: dict[str, str | SafetyPrompt] = {
        NONE: "",
        NEUTRAL: NEUTRAL_TEXT,
        config.text: safety_text(config.start),
        **trained,
        RANDOM: replace(trained[DRO], embeddings=noise, provenance={"objective": "random"}),
    }

    @cache  # a run that continues after its measurements needs neither
    def once() -> tuple[SafetyStates, Reference]:
        replies = reference(model, queries["harmless"], max_new_tokens=config.max_new_tokens)
        return safety_representations(model, test, asked), replies

    measured: dict[str, Behaviour] = {}
    for name in stages.progress(asked, "system prompts"):
        make = partial(_measured, model, queries, asked, name, fitted, once, config)
        measured[name] = stages.keep(f"behaviour-{stage_name(name)}", make, Behaviour)
    stages.lap("held-out queries")

    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        n={kind: len(part) for kind, part in queries.items()},
        openers=tuple(str(model.tokenizer.decode([i])) for i in fitted.openers),
        geometry=shown,
        training=training,
        behaviour=measured,
    )
    files = {f"{stage_name(name)}.safetensors": _file(folder, name).read_bytes() for name in trained}
    return Outcome(result=result, files=files)


def _held_out(test: Sides, prompts: PromptSet, config: Config) -> Sides:
    """Held-out queries by kind; borderline ones are the project's where the set has none."""
    borderline = prompts if ("borderline", "test") in prompts else load_prompts("builtin")
    return {**test, "borderline": borderline["borderline", "test"].first(config.n_borderline)}


def _measured(
    model: ChatModel,
    queries: Sides,
    asked: Conditions,
    name: str,
    fitted: Fitted,
    once: Callable[[], tuple[SafetyStates, Reference]],
    config: Config,
) -> Behaviour:
    states, against = once()
    return behaviour(model, queries, asked, name, fitted, states, against, config)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Work:
    """One training and what it is of."""

    model: ChatModel
    train: Sides
    fitted: Fitted
    start: SafetyPrompt
    config: Config
    name: str

    @property
    def settings(self) -> SafetyPromptConfig:
        """Settings of the training, with one weight at 0 in an ablation."""
        config = self.config
        settings = SafetyPromptConfig(
            harmfulness_weight=config.harmfulness_weight,
            rest_weight=config.rest_weight,
            unlikelihood_weight=config.unlikelihood_weight,
            learning_rate=config.learning_rate,
            batch_size=config.batch_size,
            epochs=config.epochs,
            reply_tokens=config.reply_tokens,
            seed=config.seed,
        )
        return replace(settings, **{ABLATIONS[self.name]: 0.0}) if self.name in ABLATIONS else settings


def _trained(work: _Work, path: Path, show_progress: bool) -> Training:
    """Train a prompt and write it."""
    begun = time.perf_counter()
    with using_store(None):  # timed
        done = _minimised(work, show_progress)
    seconds = time.perf_counter() - begun
    done.prompt.save(path)
    starts = [work.model.tokenizer.decode([i]) for i in _start_ids(work)]
    nearest = done.prompt.nearest_tokens(work.model)
    change = (done.prompt.embeddings - work.start.embeddings).norm() / work.start.embeddings.norm()
    return Training(
        losses=dict(done.losses),
        nearest=tuple(
            NearestToken(start=str(start), nearest=token.text, cosine=token.cosine)
            for start, (token, *_) in zip(starts, nearest, strict=True)
        ),
        moved=float(change),
        seconds=seconds,
    )


def _minimised(work: _Work, show_progress: bool) -> TrainedPrompt:
    harmful, harmless = work.train["harmful"], work.train["harmless"]
    if work.name == TUNED:
        return tune_prompt(
            work.model,
            harmful,
            harmless,
            start=work.config.start,
            config=work.settings,
            show_progress=show_progress,
        )
    return optimise_prompt(
        work.model,
        work.fitted.space,
        harmful,
        harmless,
        start=work.config.start,
        config=work.settings,
        show_progress=show_progress,
    )


def _start_ids(work: _Work) -> tuple[int, ...]:
    return work.start.slot(work.model, "x").ids


def _file(folder: Path, name: str) -> Path:
    return folder / f"{stage_name(name)}.safetensors"
