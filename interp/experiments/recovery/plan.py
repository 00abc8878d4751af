"""What the recovery experiment costs, by stage (`interp.experiments.plans`)."""

from dataclasses import fields
from typing import Any

from interp.data.prompt_sets import PAIRED_KINDS
from interp.engine.costs import Work
from interp.experiments.recovery import ABLATIONS, Config
from interp.experiments.sizes import Sizes, as_part
from interp.experiments.training_work import (
    ORDINARY_TOKENS,
    breaking_examples,
    broken,
    recovered,
    task_splits,
)
from interp.training.recovery_config import RecoveryConfig

BOUNDS = (
    "every recovery by the paper's rule is counted as rolling back, which the task score decides, and as taking all of "
    "its steps; replies at full length"
)


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by stage.

    Raises:
        ValueError: a task whose examples cannot be read.
    """
    task, length = task_splits(
        config.task, n_train=config.n_task_train, n_held_out=max(config.n_task_test, config.n_val)
    )
    test = [sizes.part(kind, "test", config.n_test) for kind in PAIRED_KINDS]
    asked = as_part([example.prompt for example in task.test[: config.n_task_test]])
    behaviour = Work.total(sizes.replies(part, config.max_new_tokens) for part in test)
    behaviour += sizes.replies(asked, length)
    validation = as_part([example.prompt for example in task.validation[: config.n_val]])
    score = sizes.replies(validation, length)
    n_stubs = 0 if config.finetuned else config.stubs[-1]
    every = sizes.part("harmful", "train", n_stubs + config.n_recovery)
    harmful = every.take(list(range(n_stubs, len(every))))
    towards_task = as_part([example.prompt for example in task.train[: config.n_recovery]])

    def recovery(rollback: bool = False, **changed: Any) -> Work:
        names = {field.name for field in fields(RecoveryConfig)}
        ours = {name: getattr(config, name) for name in names if hasattr(config, name)}
        settings = RecoveryConfig(**(ours | changed))
        return recovered(sizes, harmful, towards_task, score, settings, rollback=rollback)

    saved = 1 + len(
        [step for step in range(1, config.steps + 1) if step % config.save_every == 0 or step == config.steps]
    )
    stubs = [] if config.finetuned else config.stubs
    ordinary = sizes.part("harmless", "train", 0 if config.finetuned else config.n_ordinary)
    rolled = recovery(rollback=config.max_task_drop < 1) + behaviour * saved
    variants = [{**ABLATIONS[name]} for name in config.ablations]
    states = sizes.read(*test, as_part(asked.texts[: config.n_test]), roles=1)
    return {
        "measure": behaviour + sizes.replies(ordinary, ORDINARY_TOKENS),
        "fine-tune": Work.total(
            broken(sizes, config, breaking_examples(sizes, config, task.train, n)) for n in stubs
        ),
        "recover": rolled * max(1, len(stubs)),
        "ablations": Work.total(recovery(**changed) + behaviour for changed in [{}, *variants]),
        "cuts": Work.total(recovery(cut=cut) + behaviour for cut in config.cuts),
        "rates": (recovery() + behaviour) * len(config.rates),
        "bounds": behaviour * 2,
        "states": states * 3,
    }
