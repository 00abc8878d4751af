"""What dataset resets cost on the given model (`interp.experiments.plans`); the exact and the toy part have no plan."""

from interp.data.preferences import builtin_preferences
from interp.data.prompt_sets import PAIRED_KINDS
from interp.engine.costs import Work
from interp.experiments.dataset_reset import Config
from interp.experiments.sizes import Sizes, as_part
from interp.experiments.training_work import policy_optimised, reward_fitted
from interp.training.policy_config import PolicyConfig

BOUNDS = (
    "every update is counted, though a collapse ends a run, and answers at full length; the tabular and the toy part"
    " run a model of their own, which takes minutes, and are not counted"
)
_EPOCHS = 2
"""Passes over a batch of rollouts (`alignment.alignment_config`)."""


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work of the part on the given model."""
    if not config.model_updates:
        return {"alignment": Work()}
    preferences = builtin_preferences()
    test = [sizes.part(kind, "test", config.n_test) for kind in PAIRED_KINDS]
    asked = as_part([text for part in test for text in part.texts])
    measured = Work.total(sizes.replies(part, config.model_tokens) for part in test)
    measured += sizes.ended(asked, [config.model_tokens] * len(asked))
    settings = PolicyConfig(updates=config.model_updates, max_new_tokens=config.model_tokens)
    trained = policy_optimised(
        sizes,
        preferences.prompts("train"),
        settings,
        rollouts=config.model_rollouts,
        passes=_EPOCHS,
        references=2,
    )
    pairs = [(p.context, p.chosen, p.rejected) for p in preferences["train"]]
    held = [(p.context, p.chosen, p.rejected) for p in preferences["test"]]
    arms = len(config.model_betas)
    return {"alignment": reward_fitted(sizes, pairs, held) + measured * (1 + arms) + trained * arms}
