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
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from interp.data.prompts import Prompts
from interp.evaluation.refusals import refuses
from interp.evaluation.responses import is_incoherent
from interp.experiments.repair import Attack, AttackTrial
from interp.experiments.repair.measuring import HeldOut, Repaired, answered, plain_text, reply
from interp.experiments.repair.repairs import Broken
from interp.models.adapted_models import with_adapter, with_weights
from interp.models.chat_model import ChatModel
from interp.storage.stages import Stages, stage_name
from interp.training.breaking import poisoned_examples
from interp.training.finetune import fine_tune


def attacked(
    name: str,
    base: ChatModel,
    repaired: Repaired,
    broken: Broken,
    held: HeldOut,
    harmful: Prompts,
    stages: Stages,
) -> list[AttackTrial]:
    """A repair before any attack and after every cell of the grid, each a stage of the run.

    Args:
        name: row of the scoreboard.
        base: model whose weights the repair changes.
        harmful: harmful prompts of the attacks.
    """
    stage, out = f"attack-{stage_name(name)}", broken.out / f"attack-{stage_name(name)}"
    with with_weights(base, repaired.weights) as model:
        before = stages.keep(
            stage, partial(_measured, model, repaired, broken, held, name, None, None), AttackTrial
        )
        trials = [before]
        for attack in stages.progress(broken.config.attacks, f"attacks on {name}"):

            def trial(attack: Attack = attack) -> AttackTrial:
                examples = poisoned_examples(
                    held.task, harmful.texts, n=attack.examples, poisoned=attack.poisoned, seed=broken.seed
                )
                settings = replace(
                    broken.training,
                    learning_rate=attack.learning_rate,
                    epochs=attack.epochs,
                    warmup_steps=0,  # the first step of a warm-up has a rate of 0, and an attack has few steps
                    batch_size=min(broken.training.batch_size, attack.examples),
                )
                folder = out / stage_name(attack.label)
                trained = fine_tune(model, examples, out=folder, config=settings)
                with with_adapter(model, str(trained.folder)) as broken_again:
                    return _measured(broken_again, repaired, broken, held, name, attack, before)

            trials.append(stages.keep(f"{stage}-{stage_name(attack.label)}", trial, AttackTrial))
    return trials


def _measured(
    model: ChatModel,
    repaired: Repaired,
    broken: Broken,
    held: HeldOut,
    name: str,
    attack: Attack | None,
    before: AttackTrial | None,
) -> AttackTrial:
    config = broken.config
    if (
        attack is not None and repaired.soft_prompt is not None
    ):  # tried on other weights than it was trained on
        repaired = replace(repaired, soft_prompt=repaired.soft_prompt.moved_to(model))
    ask = partial(reply, model, repaired, max_new_tokens=held.max_new_tokens)
    said = ask(held.prompts["harmful"].texts)
    validation = ask(broken.prompts["harmful", "val"].first(config.n_val).texts)
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
