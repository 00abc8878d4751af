"""The given model: a reward model of the bundled preferences, then PPO and DR-PO towards it.

The reward model is a head on the model itself; references are the preferred replies of the training pairs. Rewards and
refusals are measured on prompts that neither of them saw.
"""

from pathlib import Path

from interp.data.preferences import PreferenceSet
from interp.data.prompt_sets import Prompts, PromptSet
from interp.engine.generation import generate
from interp.evaluation.refusals import refusal_rate
from interp.experiments.dataset_reset.results import AlignmentRow
from interp.models.adapted_models import with_adapter
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from interp.training.policy_config import OptimisedPolicy, PolicyConfig
from interp.training.policy_optimisation import optimise_policy
from interp.training.reward_models import RewardModel

UNTRAINED = -1.0
"""The `beta` of the model itself."""


def alignment_config(
    *,
    beta: float | int,
    updates: int,
    rollouts: int,
    tokens: int,
    learning_rate: float | int,
    kl: float | int,
    seed: int,
) -> PolicyConfig:
    """Settings of PPO and DR-PO on a model."""
    return PolicyConfig(
        beta=float(beta),
        updates=updates,
        rollouts=rollouts,
        epochs=2,
        micro_batch=min(16, rollouts),
        learning_rate=learning_rate,
        kl_coefficient=kl,
        max_new_tokens=tokens,
        missing_end_score=None,
        save_every=2,
        seed=seed,
    )


def aligned_row(
    model: ChatModel,
    prompts: PromptSet,
    preferences: PreferenceSet,
    reward: RewardModel,
    config: PolicyConfig,
    folder: Path,
    n_test: int,
) -> AlignmentRow:
    """Train with a share of resets, and measure."""
    pairs = {pair.context: pair for pair in preferences["train"]}
    done = optimise_policy(
        model,
        preferences.prompts("train"),
        reward,
        out=folder,
        config=config,
        references=[pairs[text].chosen for text in preferences.prompts("train").texts],
    )
    with with_adapter(model, str(done.folder)) as trained:
        return measured_row(trained, prompts, reward, config, n_test, done)


def measured_row(
    model: ChatModel,
    prompts: PromptSet,
    reward: RewardModel,
    config: PolicyConfig,
    n_test: int,
    done: OptimisedPolicy | None,
) -> AlignmentRow:
    """Greedy answers to held-out prompts: scores and refusals."""
    parts: dict[str, Prompts] = {
        "harmful": prompts["harmful", "test"].first(n_test),
        "harmless": prompts["harmless", "test"].first(n_test),
    }
    answered = {
        kind: generate(model, part.texts, max_new_tokens=config.max_new_tokens)
        for kind, part in parts.items()
    }
    records = () if done is None else done.records
    texts = [text for part in parts.values() for text in part.texts]
    ids = [ids for found in answered.values() for ids in found.ids]
    return AlignmentRow(
        beta=UNTRAINED if done is None else float(config.beta),
        tokens=records[-1].tokens if records else 0,
        reward=tuple(record.reward for record in records),
        kl=tuple(record.kl for record in records),
        held_out=float(reward.score(tokenize(reward.model.tokenizer, texts), ids).mean()),
        refuses_harmful=refusal_rate(answered["harmful"], "arditi"),
        refuses_harmless=refusal_rate(answered["harmless"], "arditi"),
        collapsed=None if done is None else done.collapsed,
    )
