"""The repair scoreboard.

1. Break the model: fine-tune it on a downstream task with empty affirmative stubs mixed in, anew for each seed.
2. Make every repair; whatever it chooses, it chooses on the validation splits.
3. Measure each on the held-out prompts, the held-out task and plain text: refusals by kind, incoherent replies, score,
   cross-entropy, share of weights changed, milliseconds a token, seconds to make.
4. Look inside the models whose weights were changed: directions, beliefs and KL beside the aligned model.
5. Break some repaired models again with further stubs, as the aligned one: how elastic is the repair?
6. Attack those of the first seed by a grid of fine-tunings (`attacks.py`), for each repair's worst case.

Controls: as many random weights as recovery restored, random weights whose change has the same norm, and a random soft
prompt of the optimised one's norms.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from interp.data.examples import Example
from interp.data.prompt_sets import PAIRED_KINDS
from interp.data.prompts import HELD_OUT_TEXT, Kind, Prompts, PromptSet, load_prompts
from interp.engine.stored_activations import using_store
from interp.evaluation.downstream_tasks import downstream_task
from interp.experiments.definition import Outcome
from interp.experiments.repair import (
    ALIGNED,
    ALL_STEPS,
    BROKEN,
    EQUAL_COUNT,
    EQUAL_NORM,
    PROMPTED,
    WEIGHT_REPAIRS,
    AttackTrial,
    Config,
    Inside,
    Result,
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
from interp.experiments.repair.repairs import REPAIRS, Broken, Weights, equal_count, equal_norm
from interp.experiments.repair.scoreboard import scoreboard
from interp.models.adapted_models import copy_with_weights, with_adapter, with_weights
from interp.models.chat_model import ChatModel
from interp.models.conversations import before_system
from interp.storage.stages import Stages, stage_name
from interp.tracking.references import fit_reference
from interp.tracking.spec import Reference, TrackingSpec
from interp.training.breaking import breaking_settings, downstream_examples, ordinary_examples, stub_examples
from interp.training.config import TrainConfig, one_pass
from interp.training.finetune import fine_tune
from interp.training.weight_repairs import (
    block_weights,
    change_norm,
    changed_count,
    weights_with_adapter,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Judge:
    """What every repair of one seed is measured with."""

    held: HeldOut
    """Held-out prompts, task and text."""
    spec: TrackingSpec
    """What is measured inside."""
    reference: Reference
    """The aligned model's directions, centres and samples."""
    further: Prompts
    """Harmful prompts of the stubs that break a repaired model again."""
    training: TrainConfig
    """Settings of breaking."""
    undo: tuple[int, ...]
    """Numbers of further stubs."""


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run the experiment; `model`, the aligned one, has its own weights again when it returns.

    Raises:
        ValueError: too few prompts for the stubs and the repairs, or repairs by a system prompt under a template that
            has none.
    """
    _check_system_slot(model, config)
    held = _held_out(prompts, config)
    spec = _measured_inside(prompts, config)
    reference = fit_reference(model, spec)
    harmful = _divided(prompts["harmful", "train"], config)
    ordinary = stages.keep(
        "ordinary",
        lambda: ordinary_examples(model, prompts["harmless", "train"].first(config.n_ordinary)),
        list[Example],
    )
    trials: dict[str, list[Trial]] = {name: [] for name in config.rows}
    attacks: list[AttackTrial] = []
    for seed in stages.progress(range(config.seed, config.seed + config.seeds), "seeds"):
        training = breaking_settings(config, seed=seed)
        judge = Judge(
            held=held,
            spec=spec,
            reference=reference,
            further=harmful["undo"],
            training=training,
            undo=config.undo,
        )

        # 1. Break the model.
        out = stages.workspace(f"seed-{seed}")
        examples = downstream_examples(
            held.task, harmful["stubs"].texts, stubs=config.stubs, seed=seed, ordinary=ordinary
        )
        trained = fine_tune(model, examples, out=out / "broken", config=training)
        broken = Broken(
            model=copy_with_weights(model, weights_with_adapter(model, str(trained.folder))),
            examples=examples,
            aligned=model,
            task=held.task,
            prompts=prompts,
            stubs=harmful["stubs"],
            harmful=harmful["repair"],
            out=out,
            config=config,
            seed=seed,
            training=training,
        )
        stages.lap("break")

        # 2. to 5. Make every repair, and measure it.
        for name in stages.progress(config.rows, "repairs"):
            if name == ALIGNED and trials[name]:
                trials[name].append(trials[name][0])  # it is the same at every seed
                continue
            make = partial(_trial, name, broken, judge)
            trials[name].append(stages.keep(f"trial-{seed}-{stage_name(name)}", make, Trial))
            stages.lap("repair and measure")

        # 6. Attack those of the first seed.
        if seed == config.seed and config.attacks:
            for name in config.attacked_rows:
                base = broken.aligned if name == ALIGNED else broken.model
                attacks += attacked(name, base, _made(name, broken), broken, held, harmful["undo"], stages)
            stages.lap("attack")

    done = _beside_no_repair(trials)
    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        n={**{kind: len(part) for kind, part in held.prompts.items()}, "task": held.n_task},
        rows=scoreboard(done, seed=config.seed),
        trials=done,
        attacks=tuple(attacks),
    )
    return Outcome(result=result)


def _check_system_slot(model: ChatModel, config: Config) -> None:
    """Refuse repairs by a prompt, before anything is trained, where the chat template has no system slot.

    Raises:
        ValueError: such a repair under such a template.
    """
    prompted = [name for name in config.rows if name in PROMPTED]
    if prompted:
        try:
            before_system(model.tokenizer)
        except ValueError as error:
            raise ValueError(f"{error}; or leave {', '.join(prompted)} out of repairs") from None


def _held_out(prompts: PromptSet, config: Config) -> HeldOut:
    """What repairs are measured on."""
    n_held_out = max(config.n_task_test, config.n_val)
    task = downstream_task(config.task, n_train=config.n_task_train, n_held_out=n_held_out)
    borderline = prompts if ("borderline", "test") in prompts else load_prompts("builtin")
    by_kind: dict[Kind, Prompts] = {
        **{kind: prompts[kind, "test"].first(config.n_test) for kind in PAIRED_KINDS},
        "borderline": borderline["borderline", "test"].first(config.n_borderline),
    }
    return HeldOut(
        prompts=by_kind,
        task=task,
        n_task=min(config.n_task_test, len(task.test)),
        text=HELD_OUT_TEXT.read_text(),
        n_windows=config.n_windows,
        max_new_tokens=config.max_new_tokens,
    )


def _measured_inside(prompts: PromptSet, config: Config) -> TrackingSpec:
    """What is measured inside the models whose weights are changed."""
    return TrackingSpec(
        prompts=prompts,
        measures=("beliefs", "directions", "guard", "kl"),
        n=config.n_test,
        n_fit=config.n_fit,
        max_new_tokens=config.max_new_tokens,
    )


def _divided(harmful: Prompts, config: Config) -> dict[str, Prompts]:
    """Harmful training prompts for the stubs, for the repairs, and for breaking repaired models: none is in two.

    Raises:
        ValueError: too few.
    """
    wanted = {
        "stubs": config.stubs,
        "repair": max(config.n_recovery, config.n_fit, config.n_refusals),
        "undo": max([*config.undo, *(attack.poisoned for attack in config.attacks)], default=0),
    }
    if len(harmful) < sum(wanted.values()):
        needs = ", ".join(f"{n} for {name}" for name, n in wanted.items())
        raise ValueError(
            f"{len(harmful)} harmful training prompts are too few: {needs}; lower stubs, n_recovery, n_refusals, undo "
            "or attack_examples"
        )
    parts: dict[str, Prompts] = {}
    first = 0
    for name, n in wanted.items():
        parts[name] = harmful.take(list(range(first, first + n)))
        first += n
    return parts


def _trial(name: str, broken: Broken, judge: Judge) -> Trial:
    """Make a repair and measure it."""
    with using_store(None):  # timed
        begun = time.perf_counter()
        repaired = _made(name, broken)
        seconds = time.perf_counter() - begun
    base = broken.aligned if name == ALIGNED else broken.model
    with with_weights(base, repaired.weights) as model:
        seen = behaviour(model, repaired, judge.held)
        changed = bool(repaired.weights) or name in (ALIGNED, BROKEN)
        within = inside(model, judge.spec, judge.reference) if changed else None
        again = changed and name in broken.config.attacked and judge.undo
        undone = _undone(model, name, broken, judge) if again else None
    trial = _as_trial(seen, repaired, broken, seconds=seconds, within=within, undone=undone)
    if name in WEIGHT_REPAIRS and repaired.weights:
        return replace(trial, beside_random=_beside_random(broken, repaired.weights, judge.held))
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


def _made(name: str, broken: Broken) -> Repaired:
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


def _undone(model: ChatModel, name: str, broken: Broken, judge: Judge) -> dict[int, tuple[bool, ...]]:
    """Refused held-out harmful prompts after each number of further stubs."""
    out = broken.out / f"undo-{stage_name(name)}"
    size = judge.training.batch_size
    examples = stub_examples(judge.further.texts, max(judge.undo))
    settings = one_pass(
        batch_size=min(size, *judge.undo),
        learning_rate=judge.training.learning_rate,
        rank=judge.training.rank,
        seed=judge.training.seed,
    )
    trained = fine_tune(model, examples, out=out, config=settings, checkpoints=judge.undo)
    refused = {}
    for count in judge.undo:
        with with_adapter(model, str(trained.checkpoints[count])) as undone:
            refused[count] = harmful_refused(
                undone, judge.held.prompts["harmful"], max_new_tokens=judge.held.max_new_tokens
            )
    return refused


def _beside_no_repair(trials: Mapping[str, list[Trial]]) -> dict[str, tuple[Trial, ...]]:
    """The trials with their milliseconds less those of the model without repair, of the same seed."""
    plain = [trial.extra_milliseconds for trial in trials[BROKEN]]
    return {
        name: tuple(
            replace(trial, extra_milliseconds=trial.extra_milliseconds - before)
            for trial, before in zip(done, plain, strict=True)
        )
        for name, done in trials.items()
    }
