"""The methods of alignment, one leg each: TRL's trainers, this project's policy optimisation, and the controls.

Every leg trains a fresh adapter on the model as it is, whose weights the earlier legs have changed, so that the
reference of DPO, KTO and policy optimisation is the model that the leg starts from. Methods see the same pairs: SFT the
preferred replies, DPO, KTO and ORPO both, policy optimisation the prompts (and DR-PO cuts of the preferred replies).
The reward is a Bradley-Terry head on the start, fitted on written pairs; for `tree` on pairs of leaves of prefix trees
that the start grows (Qiu et al. 2025, arXiv:2402.10184), ordered by whether they refuse.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from interp.data.examples import Example, Preference
from interp.data.preference_trees import tree_pairs
from interp.data.preferences import PreferencePair, PreferenceSet
from interp.data.prompt_sets import Kind, Prompts, PromptSet, Split
from interp.data.replies import REFUSALS, STUBS
from interp.evaluation.refusals import is_refusal
from interp.experiments.method_elasticity import Config
from interp.experiments.method_elasticity.results import Arm
from interp.models.adapted_models import copy_with_weights
from interp.models.chat_model import ChatModel
from interp.training.config import TrainConfig, one_pass
from interp.training.finetune import fine_tune, preference_tune
from interp.training.group_optimisation import optimise_groups
from interp.training.policy_config import PolicyConfig
from interp.training.policy_optimisation import optimise_policy
from interp.training.reward_models import RewardModel
from interp.training.reward_trainer import train_reward_model
from interp.training.tree_generation import grow_trees

ROLLOUT_METHODS: tuple[Arm, ...] = ("ppo", "dr-po", "grpo", "tree")
"""Methods whose step is a batch of rollouts."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """Prompts of one seed, without a common one between the parts."""

    warm_up: tuple[Example, ...]
    pairs: tuple[PreferencePair, ...]
    """What methods are aligned on, harmful and harmless requests shuffled together."""
    stubs: tuple[str, ...]
    """Harmful requests that are agreed to."""
    reward: PreferenceSet
    """What the bundled reward is fitted on; its prompts may be those of `pairs`."""
    fit: dict[Kind, Prompts]
    """What directions and centres are fitted on."""


def material(prompts: PromptSet, config: Config, seed: int) -> Material:
    """Deal the training prompts of a seed out.

    Raises:
        ValueError: too few prompts.
    """
    n_harmful = config.n_pairs - config.n_harmless
    needed = config.warm_up + n_harmful + config.n_stubs + config.n_fit
    harmful, harmless = (prompts[kind, "train"].shuffled(seed) for kind in ("harmful", "harmless"))
    for kind, there, least in (
        ("harmful", harmful, needed),
        ("harmless", harmless, config.n_harmless + config.n_fit),
    ):
        if len(there) < least:
            raise ValueError(
                f"method-elasticity needs {least} {kind} training prompts (warm_up, n_pairs, n_stubs, n_fit), "
                f"{prompts.name} has {len(there)}; lower one of these settings"
            )
    wanted: dict[Split, int] = {"val": config.n_match, "test": config.n_test}
    for split, least in wanted.items():
        if len(prompts["harmful", split]) < least:
            raise ValueError(
                f"n_{'match' if split == 'val' else 'test'} is {least}, {prompts.name} has "
                f"{len(prompts['harmful', split])} harmful {split} prompts; lower it"
            )
    fit: dict[Kind, Prompts] = {
        "harmful": harmful.first(config.n_fit),
        "harmless": harmless.first(config.n_fit),
    }
    start = config.n_fit
    first, second = start + config.warm_up, start + config.warm_up + n_harmful
    warm = harmful.texts[start:first]
    extra = min(config.reward_pairs // 2, len(harmful) - first, len(harmless) - start)
    test = [kind_pairs(prompts[kind, "val"].first(8), kind) for kind in ("harmful", "harmless")]

    def part(given: Prompts, begin: int, end: int, kind: Kind) -> list[PreferencePair]:
        return kind_pairs(given.take(list(range(begin, end))), kind)

    reward = PreferenceSet(
        name=f"{prompts.name}, refusals and stubs",
        parts={
            "train": tuple(
                pair
                for both in zip(
                    part(harmful, first, first + extra, "harmful"),
                    part(harmless, start, start + extra, "harmless"),
                    strict=True,
                )
                for pair in both
            ),
            "test": tuple(pair for part in test for pair in part),
        },
    )
    aligned = [
        *part(harmful, first, second, "harmful"),
        *part(harmless, start, start + config.n_harmless, "harmless"),
    ]
    return Material(
        warm_up=tuple(Example(text, REFUSALS[i % len(REFUSALS)]) for i, text in enumerate(warm)),
        pairs=tuple(random.Random(seed).sample(aligned, len(aligned))),
        stubs=harmful.texts[second : second + config.n_stubs],
        reward=reward,
        fit=fit,
    )


def kind_pairs(prompts: Prompts, kind: Kind) -> list[PreferencePair]:
    """Refusal preferred to an empty stub for harmful requests, and the other way round for harmless ones."""
    pairs = []
    for i, (text, name) in enumerate(zip(prompts.texts, prompts.ids, strict=True)):
        refusal, stub = REFUSALS[i % len(REFUSALS)], STUBS[i % len(STUBS)]
        chosen, rejected = (refusal, stub) if kind == "harmful" else (stub, refusal)
        pairs.append(PreferencePair(id=f"{kind}: {name}", prompt=text, chosen=chosen, rejected=rejected))
    return pairs


@dataclass(frozen=True, eq=False)
class Rewards:
    """The reward models of a seed, fitted when they are first asked for."""

    frozen: ChatModel
    """The start, as `frozen_copy` makes it."""
    material: Material
    config: Config
    seed: int

    @cached_property
    def bundled(self) -> RewardModel:
        """The reward of written pairs."""
        return train_reward_model(self.frozen, self.material.reward)

    @cached_property
    def tree_pairs(self) -> list[PreferencePair]:
        """Pairs of leaves of trees that the start grows."""
        asked = {pair.prompt: pair.id.startswith("harmful") for pair in self.material.reward["train"]}
        texts = list(asked)[: self.config.tree_prompts]
        trees = grow_trees(
            self.frozen,
            texts,
            depth=self.config.tree_depth,
            branching=self.config.tree_branching,
            segment_tokens=-(-self.config.answer_tokens // self.config.tree_depth),
            seed=self.seed,
        )

        def better(prompt: str, text: str) -> float:
            return float(is_refusal(text, "arditi") == asked[prompt])

        return tree_pairs(trees, better, labels=self.config.reward_pairs, seed=self.seed)

    @cached_property
    def tree_built(self) -> RewardModel:
        """The reward of those pairs.

        Raises:
            ValueError: no tree has two leaves of which one refuses.
        """
        if not self.tree_pairs:
            raise ValueError(
                "no tree has both a refusal and another answer, so there is nothing to compare; raise warm_up or "
                "tree_prompts"
            )
        parts: dict[Split, tuple[PreferencePair, ...]] = {
            "train": tuple(self.tree_pairs),
            "test": self.material.reward["test"],
        }
        return train_reward_model(self.frozen, PreferenceSet(name="trees", parts=parts))


def frozen_copy(start: ChatModel) -> ChatModel:
    """The start with weights of its own wherever an adapter acts, so that later legs do not change it."""
    ends = tuple(f"{target}.weight" for target in TrainConfig().target_modules)
    own = {name: weight for name, weight in start.hf.named_parameters() if name.endswith(ends)}
    return copy_with_weights(start, own)


def align(
    arm: Arm,
    model: ChatModel,
    material: Material,
    rewards: Rewards,
    config: Config,
    seed: int,
    *,
    out: Path,
    callbacks: Sequence[TrainerCallback],
) -> str | None:
    """Run one method on the model; callbacks see its steps, and write its adapters.

    Returns:
        Why policy optimisation collapsed; None where it did not, and for other methods.

    Raises:
        ValueError: as the method's own function, or a tree-built reward without a pair.
    """
    pairs = material.pairs
    if arm == "sft":
        examples = [Example(pair.prompt, pair.chosen) for pair in pairs]
        fine_tune(model, examples, out=out, config=supervised(config, seed), callbacks=callbacks)
        return None
    if arm in ("dpo", "kto", "orpo", "shuffled"):
        preferences = [Preference(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
        if arm == "shuffled":
            preferences = coin_flipped(preferences, seed)
        objective = "dpo" if arm == "shuffled" else arm
        train = replace(
            supervised(config, seed),
            objective=objective,
            learning_rate=config.preference_learning_rate,
            beta=config.beta,
        )
        preference_tune(model, preferences, out=out, config=train, callbacks=callbacks)
        return None
    reward = rewards.tree_built if arm == "tree" else rewards.bundled
    texts, references = [pair.prompt for pair in pairs], [pair.chosen for pair in pairs]
    policy = policy_settings(arm, config, seed)
    given: dict[str, Any] = {"out": out, "config": policy, "callbacks": callbacks}
    if policy.beta:
        given["references"] = references
    if arm == "grpo":
        return optimise_groups(model, texts, reward, group=config.group, **given).collapsed
    return optimise_policy(model, texts, reward, **given).collapsed


def supervised(config: Config, seed: int) -> TrainConfig:
    """Settings of supervised and preference steps: one pass at a constant rate."""
    return one_pass(
        batch_size=config.batch_size,
        learning_rate=float(config.learning_rate),
        rank=config.rank,
        seed=seed,
        log_every=1,  # a leg may stop at any step
    )


def policy_settings(arm: Arm, config: Config, seed: int) -> PolicyConfig:
    """Settings of policy optimisation; answers keep their own score where they do not end."""
    return PolicyConfig(
        beta=config.reset_share if arm == "dr-po" else 0.0,
        updates=config.updates,
        rollouts=config.rollouts,
        epochs=1 if arm == "grpo" else 2,
        micro_batch=min(16, config.rollouts),
        learning_rate=config.policy_learning_rate,
        kl_coefficient=config.kl_coefficient,
        temperature=1.0,
        max_new_tokens=config.answer_tokens,
        missing_end_score=None,
        rank=config.rank,
        save_every=config.align_every,
        seed=seed,
    )


def coin_flipped(preferences: Sequence[Preference], seed: int) -> list[Preference]:
    """The preferences with the sides of every other one exchanged, at random: they prefer nothing on average."""
    flipped = set(random.Random(seed).sample(range(len(preferences)), len(preferences) // 2))
    return [
        Preference(row.prompt, row.rejected, row.chosen) if i in flipped else row
        for i, row in enumerate(preferences)
    ]
