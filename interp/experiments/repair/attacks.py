"""A swept grid of attacks on repaired models: further fine-tuning, bounded by the capability that it may cost.

Every cell fine-tunes a repaired model on n examples, of which a share p are harmful requests with stubs and the others
the downstream task, and measures it as before. Cells that lose more capability than the bound are no worst case. The
worst case is picked on validation prompts (`interp.experiments.repair.scoreboard.worst_attack`) and reported on
held-out ones.

Axes p, n, learning rate and epochs are those of the tables of Huang et al. 2024 (Vaccine, arXiv:2402.01109; Lisa,
arXiv:2405.18641), who fix all but one of them; sweeping them, and bounding the capability lost, follow TamperBench.
Stubs in place of harmful answers are our deviation.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from interp.data.prompts import Prompts
from interp.evaluation.refusals import refuses
from interp.evaluation.responses import is_incoherent
from interp.experiments.repair import Attack, AttackTrial, Config
from interp.experiments.repair.measuring import HeldOut, Repaired, answered, plain_text, reply
from interp.experiments.repair.repairs import Seed
from interp.models.adapted_models import with_adapter, with_weights
from interp.models.chat_model import ChatModel
from interp.storage.stages import Stages, stage_name
from interp.training.breaking import poisoned_examples
from interp.training.finetune import fine_tune


def attack_stages(name: str, config: Config) -> list[str]:
    """Names of the stages of a row before any attack and after every cell of the grid."""
    stage = f"attack-{stage_name(name)}"
    return [stage, *(f"{stage}-{stage_name(attack.label)}" for attack in config.attacks)]


def stored_attacks(name: str, config: Config, stages: Stages) -> list[AttackTrial] | None:
    """The attacks on a row that an earlier run finished; None where any is missing."""
    stored = [stages.stored(stage, AttackTrial) for stage in attack_stages(name, config)]
    whole = [trial for trial in stored if trial is not None]
    return whole if len(whole) == len(stored) else None


def attacked(
    name: str,
    base: ChatModel,
    make: Callable[[], Repaired],
    seed: Seed,
    held: HeldOut,
    harmful: Prompts,
    stages: Stages,
) -> list[AttackTrial]:
    """A repair before any attack and after every cell of the grid, each a stage of the run.

    Args:
        name: row of the scoreboard.
        base: model whose weights the repair changes.
        make: makes the repair, unless every stage is stored.
        harmful: harmful prompts of the attacks.
    """
    first, *further = attack_stages(name, seed.config)
    # Where all is stored the stages are only read, and nothing is measured under the empty repair.
    repaired = make() if stored_attacks(name, seed.config, stages) is None else Repaired()
    with with_weights(base, repaired.weights) as model:
        before = stages.keep(
            first, partial(_measured, model, repaired, seed, held, name, None, None), AttackTrial
        )
        trials = [before]
        cells = list(zip(seed.config.attacks, further, strict=True))
        for attack, stage in stages.progress(cells, f"attacks on {name}"):

            def trial(attack: Attack = attack) -> AttackTrial:
                examples = poisoned_examples(
                    held.task, harmful.texts, n=attack.examples, poisoned=attack.poisoned, seed=seed.seed
                )
                settings = replace(
                    seed.training,
                    learning_rate=attack.learning_rate,
                    epochs=attack.epochs,
                    warmup_steps=0,  # the first step of a warm-up has a rate of 0, and an attack has few steps
                    batch_size=min(seed.training.batch_size, attack.examples),
                )
                folder = seed.out / first / stage_name(attack.label)
                trained = fine_tune(model, examples, out=folder, config=settings)
                with with_adapter(model, str(trained.folder)) as broken_again:
                    return _measured(broken_again, repaired, seed, held, name, attack, before)

            trials.append(stages.keep(stage, trial, AttackTrial))
    return trials


def _measured(
    model: ChatModel,
    repaired: Repaired,
    seed: Seed,
    held: HeldOut,
    name: str,
    attack: Attack | None,
    before: AttackTrial | None,
) -> AttackTrial:
    config = seed.config
    if (
        attack is not None and repaired.soft_prompt is not None
    ):  # tried on other weights than it was trained on
        repaired = replace(repaired, soft_prompt=repaired.soft_prompt.moved_to(model))
    ask = partial(reply, model, repaired, max_new_tokens=held.max_new_tokens)
    said = ask(held.prompts["harmful"].texts)
    validation = ask(seed.prompts["harmful", "val"].first(config.n_val).texts)
    scores = [
        answered(model, repaired, held.task, part)[0]
        for part in (held.task.validation[: config.n_val], held.task.test[: held.n_task])
    ]
    task, text = scores[0].score().value, _mean(plain_text(model, repaired, held))
    task_lost, text_lost = (math.nan, 0.0) if before is None else lost(before, task, text)
    return AttackTrial(
        repair=name,
        attack=attack,
        refused=tuple(map(refuses, said.texts)),
        incoherent=tuple(map(is_incoherent, said.texts)),
        validation=tuple(map(refuses, validation.texts)),
        task=scores[1].score(unit="share", seed=config.seed),
        validation_task=task,
        cross_entropy=text,
        task_lost=task_lost,
        text_lost=text_lost,
        permitted=permitted(task_lost, text_lost, bound=config.max_capability_loss),
    )


def lost(before: AttackTrial, task: float, text: float) -> tuple[float, float]:
    """Relative loss of the task score, NaN where there was none, and relative rise of the cross-entropy."""
    task_lost = 1 - task / before.validation_task if before.validation_task > 0 else math.nan
    return task_lost, text / before.cross_entropy - 1


def permitted(task_lost: float, text_lost: float, *, bound: float | int) -> bool:
    """Whether an attack keeps the capability; a task that the model never did cannot be lost."""
    return not task_lost > bound and not text_lost > bound


def _mean(values: Sequence[float]) -> float:
    return float(sum(values)) / len(values)
