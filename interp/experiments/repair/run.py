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

The steps at one seed are in `trials.py`. With workers (`interp.engine.ray`) each takes one seed's breaking, and then
rows of one seed, at a time (`shared_rows.py`).
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from interp.data.examples import Example
from interp.data.prompt_sets import PAIRED_KINDS
from interp.data.prompts import HELD_OUT_TEXT, Kind, Prompts, PromptSet, load_prompts
from interp.evaluation.downstream_tasks import downstream_task
from interp.experiments.definition import Outcome
from interp.experiments.repair import ALIGNED, BROKEN, PROMPTED, AttackTrial, Config, Result, Trial
from interp.experiments.repair.measuring import HeldOut
from interp.experiments.repair.scoreboard import scoreboard
from interp.experiments.repair.shared_rows import shared_rows
from interp.experiments.repair.trials import (
    Given,
    Measured,
    attacks_on_aligned,
    attacks_on_repair,
    break_model,
    broken_by,
    trial_of,
    trial_stage,
)
from interp.models.chat_model import ChatModel
from interp.models.conversations import before_system
from interp.models.named_models import source_of
from interp.storage.stages import Stages
from interp.tracking.references import fit_reference
from interp.tracking.spec import TrackingSpec
from interp.training.breaking import ordinary_examples


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run the experiment; `model`, the aligned one, has its own weights again when it returns.

    Raises:
        ValueError: too few prompts for the stubs and the repairs, repairs by a system prompt under a template that has
            none, or a model that workers cannot load.
    """
    _check_system_slot(model, config)
    if stages.workers is not None:
        source_of(model)  # refused before anything is computed
    spec = _measured_inside(prompts, config)
    harmful = _divided(prompts["harmful", "train"], config)
    given = Given(
        prompts=prompts,
        config=config,
        held=_held_out(prompts, config),
        spec=spec,
        reference=fit_reference(model, spec),
        harmful=harmful,
        ordinary=stages.keep(
            "ordinary",
            lambda: ordinary_examples(model, prompts["harmless", "train"].first(config.n_ordinary)),
            list[Example],
        ),
    )
    measured = (_measured if stages.workers is None else shared_rows)(model, given, stages)
    done = _beside_no_repair(measured.trials)
    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        n={**{kind: len(part) for kind, part in given.held.prompts.items()}, "task": given.held.n_task},
        rows=scoreboard(done, seed=config.seed),
        trials=done,
        attacks=tuple(measured.attacks),
    )
    return Outcome(result=result)


def _measured(model: ChatModel, given: Given, stages: Stages) -> Measured:
    """Every row at every seed, one after the other."""
    config = given.config
    trials: dict[str, list[Trial]] = {name: [] for name in config.rows}
    attacks: list[AttackTrial] = []
    for number in stages.progress(given.seeds, "seeds"):
        # 1. Break the model.
        seed = given.seed(model, number, stages.workspace(f"seed-{number}"))
        broken = broken_by(seed, break_model(seed))
        stages.lap("break")

        # 2. to 5. Make every repair, and measure it.
        for name in stages.progress(config.rows, "repairs"):
            if name == ALIGNED and trials[name]:
                trials[name].append(trials[name][0])  # it is the same at every seed
                continue
            make = partial(trial_of, name, broken, given)
            trials[name].append(stages.keep(trial_stage(number, name), make, Trial))
            stages.lap("repair and measure")

        # 6. Attack those of the first seed.
        if number == config.seed and config.attacks:
            for name in config.attacked_rows:
                if name == ALIGNED:
                    attacks += attacks_on_aligned(seed, given, stages)
                else:
                    attacks += attacks_on_repair(name, broken, given, stages)
            stages.lap("attack")
    return Measured(trials, attacks)


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
