"""The rows of the scoreboard at one seed: its broken model, the trial of every repair, and the attacks on it.

    seed = given.seed(model, 0, folder)
    broken = broken_by(seed, break_model(seed))
    trial = trial_of("SafeLoRA", broken, given)

All that is the same at every seed is in `Given`, which has no model, so that it can be sent to workers.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from interp.data.examples import Example
from interp.data.prompts import Prompts, PromptSet
from interp.engine.stored_activations import using_store
from interp.experiments.repair import (
    ALIGNED,
    ALL_STEPS,
    BROKEN,
    EQUAL_COUNT,
    EQUAL_NORM,
    WEIGHT_REPAIRS,
    AttackTrial,
    Config,
    Inside,
    Trial,
)
from interp.experiments.repair.attacks import attacked
from interp.experiments.repair.measuring import (
    Behaviour,
    HeldOut,
    Repaired,
    behaviour,
    harmful_refused,
    inside,
)
from interp.experiments.repair.repairs import REPAIRS, Broken, Seed, Weights, equal_count, equal_norm
from interp.models.adapted_models import copy_with_weights, with_adapter, with_weights
from interp.models.chat_model import ChatModel
from interp.storage.stages import Stages, stage_name
from interp.tracking.spec import Reference, TrackingSpec
from interp.training.breaking import breaking_settings, downstream_examples, stub_examples
from interp.training.config import one_pass
from interp.training.finetune import fine_tune
from interp.training.saving import read_finished, run_key
from interp.training.weight_repairs import (
    block_weights,
    change_norm,
    changed_count,
    weights_with_adapter,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Given:
    """What is the same at every seed."""

    prompts: PromptSet
    """Prompt set: its training and validation splits."""
    config: Config
    """Settings."""
    held: HeldOut
    """Held-out prompts, task and text."""
    spec: TrackingSpec
    """What is measured inside."""
    reference: Reference
    """The aligned model's directions, centres and samples."""
    harmful: Mapping[str, Prompts]
    """Harmful training prompts of the `stubs`, of the `repair`s, and of breaking a repaired model again (`undo`)."""
    ordinary: Sequence[Example]
    """Harmless prompts with the aligned model's own replies, for breaking."""

    @property
    def seeds(self) -> range:
        """The seeds."""
        return range(self.config.seed, self.config.seed + self.config.seeds)

    def seed(self, model: ChatModel, number: int, out: Path) -> Seed:
        """One of them, for the aligned model, with a folder for its checkpoints."""
        config, stubs = self.config, self.harmful["stubs"]
        return Seed(
            aligned=model,
            task=self.held.task,
            prompts=self.prompts,
            examples=downstream_examples(
                self.held.task, stubs.texts, stubs=config.stubs, seed=number, ordinary=self.ordinary
            ),
            stubs=stubs,
            harmful=self.harmful["repair"],
            out=out,
            config=config,
            seed=number,
            training=breaking_settings(config, seed=number),
        )


class Measured(NamedTuple):
    """What a run measures."""

    trials: dict[str, list[Trial]]
    """Every row at every seed."""
    attacks: list[AttackTrial]
    """Attacks on rows of the first seed."""


def broken_folder(seed: Seed) -> Path:
    """Where the adapter that breaks the model is written."""
    return seed.out / "broken"


def break_model(seed: Seed) -> Path:
    """Folder of the adapter that breaks the model; one that was trained before is only read."""
    return fine_tune(seed.aligned, seed.examples, out=broken_folder(seed), config=seed.training).folder


def was_broken(seed: Seed) -> bool:
    """Whether the adapter that breaks the model is there."""
    key = run_key(seed.aligned, seed.examples, seed.training, None)
    return read_finished(broken_folder(seed), key, {}) is not None


def broken_by(seed: Seed, adapter: Path) -> Broken:
    """The seed with the model that this adapter breaks."""
    weights = weights_with_adapter(seed.aligned, str(adapter))
    model = copy_with_weights(seed.aligned, weights)
    return Broken(model=model, **{f.name: getattr(seed, f.name) for f in fields(Seed)})


def trial_stage(seed: int, name: str) -> str:
    """Name of the stage of a row at a seed."""
    return f"trial-{seed}-{stage_name(name)}"


def attacks_on_aligned(seed: Seed, given: Given, stages: Stages) -> list[AttackTrial]:
    """The attacks on the aligned model, which need no broken one."""
    return attacked(ALIGNED, seed.aligned, Repaired, seed, given.held, given.harmful["undo"], stages)


def attacks_on_repair(name: str, broken: Broken, given: Given, stages: Stages) -> list[AttackTrial]:
    """The attacks on another row."""
    make = partial(made, name, broken)
    return attacked(name, broken.model, make, broken, given.held, given.harmful["undo"], stages)


def trial_of(name: str, broken: Broken, given: Given) -> Trial:
    """Make a repair and measure it."""
    with using_store(None):  # timed
        broken.lent.clear()
        begun = time.perf_counter()
        repaired = made(name, broken)
        seconds = time.perf_counter() - begun + sum(broken.lent)
    base = broken.aligned if name == ALIGNED else broken.model
    with with_weights(base, repaired.weights) as model:
        seen = behaviour(model, repaired, given.held)
        changed = bool(repaired.weights) or name in (ALIGNED, BROKEN)
        within = inside(model, given.spec, given.reference) if changed else None
        again = changed and name in broken.config.attacked and broken.config.undo
        undone = _undone(model, name, broken, given) if again else None
    trial = _as_trial(seen, repaired, broken, seconds=seconds, within=within, undone=undone)
    if name in WEIGHT_REPAIRS and repaired.weights:
        return replace(trial, beside_random=_beside_random(broken, repaired.weights, given.held))
    return trial


def _beside_random(broken: Broken, weights: Weights, held: HeldOut) -> tuple[bool, ...] | None:
    """Refusals of harmful prompts under the random restore of a repair's own norm; None where it has none.

    A change beyond that of restoring everything has no random restore as large.
    """
    if change_norm(broken.finetuned_weights, weights) > broken.damage:
        return None
    control = equal_norm(broken, weights).weights
    with with_weights(broken.model, control) as model:
        return harmful_refused(model, held.prompts["harmful"], max_new_tokens=held.max_new_tokens)


def made(name: str, broken: Broken) -> Repaired:
    """The repair of a row."""
    if name == ALIGNED:
        return Repaired()
    if name in (EQUAL_COUNT, EQUAL_NORM):
        like = REPAIRS[ALL_STEPS](broken).weights
        return (equal_count if name == EQUAL_COUNT else equal_norm)(broken, like)
    return REPAIRS[name](broken)


def _as_trial(
    seen: Behaviour,
    repaired: Repaired,
    broken: Broken,
    *,
    seconds: float,
    within: Inside | None,
    undone: dict[int, tuple[bool, ...]] | None,
) -> Trial:
    finetuned = broken.finetuned_weights
    total = sum(finetuned[name].numel() for name in block_weights(broken.model))
    return Trial(
        refused=seen.refused,
        incoherent=seen.incoherent,
        task=seen.task.gained,
        task_possible=() if set(seen.task.possible) <= {1.0} else seen.task.possible,
        cross_entropy=seen.cross_entropy,
        weights_changed=changed_count(finetuned, repaired.weights) / total,
        change_norm=change_norm(finetuned, repaired.weights) / broken.damage,
        extra_milliseconds=seen.milliseconds,  # less those without repair, once all are there
        seconds=seconds,
        inside=within,
        undone=undone,
        chosen=repaired.chosen,
    )


def _undone(model: ChatModel, name: str, broken: Broken, given: Given) -> dict[int, tuple[bool, ...]]:
    """Refused held-out harmful prompts after each number of further stubs."""
    out, training, counts = broken.out / f"undo-{stage_name(name)}", broken.training, broken.config.undo
    settings = one_pass(
        batch_size=min(training.batch_size, *counts),
        learning_rate=training.learning_rate,
        rank=training.rank,
        seed=training.seed,
    )
    examples = stub_examples(given.harmful["undo"].texts, max(counts))
    trained = fine_tune(model, examples, out=out, config=settings, checkpoints=counts)
    held, refused = given.held, {}
    for count in counts:
        with with_adapter(model, str(trained.checkpoints[count])) as undone:
            refused[count] = harmful_refused(
                undone, held.prompts["harmful"], max_new_tokens=held.max_new_tokens
            )
    return refused
