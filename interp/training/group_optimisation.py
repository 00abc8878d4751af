"""GRPO through TRL, with resets: the members of a group start from one cut of a reference answer.

    config = PolicyConfig(beta=1.0)
    done = optimise_groups(model, prompts, reward.score, out="runs/grpo", config=config, references=replies)

Rollouts are the engine's (`rollout_func` of `trl.GRPOTrainer`, which TRL calls experimental): a reset prefix is
returned as completion tokens with `env_mask` 0, which takes them out of the loss. All members of a group share the
prefix, or the group's mean would be no baseline. An adapter is trained, whose base is the reference of the KL.

Of `PolicyConfig` these count: beta, updates, rollouts, epochs (TRL's iterations), micro_batch, learning_rate,
kl_coefficient (TRL's beta, in the loss), clip, temperature, max_new_tokens, missing_end_score, rank, target_modules,
max_kl, max_empty, seed. A run that collapses stops and says so, by the rule of `optimise_policy`. A killed run starts
again.

Sources: Shao et al. 2024, arXiv:2402.03300 (GRPO); Chang et al. 2024, arXiv:2404.08495 (resets).
"""

import copy
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from interp.models.adapted_models import copy_with_weights
from interp.models.chat_model import ChatModel
from interp.models.contexts import check_context
from interp.models.tokens import PromptInput, as_tokens
from interp.storage.locks import resolved
from interp.training.config import TrainConfig
from interp.training.policy_config import (
    OptimisedPolicy,
    PolicyConfig,
    RewardFunction,
    UpdateRecord,
    collapse_of,
)
from interp.training.policy_files import policy_key, read_policy, write_policy
from interp.training.policy_models import LivePolicy
from interp.training.reward_models import Replies, RewardModel, reply_ids
from interp.training.rollouts import draw_resets, empty_share, roll_out, sampled_kl
from interp.training.runner import trainable_module
from interp.training.saving import write_checkpoint

logger = logging.getLogger(__name__)


def optimise_groups(
    model: ChatModel,
    prompts: PromptInput,
    reward: RewardFunction | RewardModel,
    *,
    out: str | Path,
    config: PolicyConfig | None = None,
    group: int = 8,
    references: Replies | None = None,
    report_to: Sequence[str] = (),
    callbacks: Sequence[TrainerCallback] = (),
) -> OptimisedPolicy:
    """Train an adapter by GRPO and write it to `out`; the model stays as it is.

    Args:
        group: answers to a prompt, whose mean reward is the baseline.
        references: as for `optimise_policy`.

    Raises:
        ValueError: rollouts that are no multiple of the group, no references for resets, another tokenizer, or a loss
            that is not a number.
    """
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig

    config, out = PolicyConfig() if config is None else config, resolved(Path(out))
    if group < 2 or config.rollouts % group:
        raise ValueError(
            f"rollouts must be a multiple of the group, 2 or more, got {config.rollouts} and {group}"
        )
    if config.beta and references is None:
        raise ValueError(f"beta is {config.beta}: resets need references, an answer to each prompt")
    tokens = as_tokens(model.tokenizer, prompts)
    check_context(model, tokens, new_tokens=config.max_new_tokens)
    if isinstance(reward, RewardModel):
        reward.check_tokenizer(model)
        reward = reward.score
    given = [[0]] * len(tokens) if references is None else reply_ids(model, references)
    given = [ids[: config.max_new_tokens] for ids in given]
    key = f"grpo-{group}-{policy_key(model, tokens, given if config.beta else [], config, None)}"
    if (done := read_policy(out, key)) is not None:
        return done
    train = TrainConfig(
        rank=config.rank,
        alpha=2 * config.rank,
        dropout=0.0,
        target_modules=config.target_modules,
        seed=config.seed,
    )
    torch.manual_seed(config.seed)
    twin = copy_with_weights(model, {})
    with trainable_module(twin, train, None) as adapted:
        rollouts = GroupRollouts(model, LivePolicy(model, adapted), tokens, given, reward, config, group)
        micro = math.gcd(config.rollouts, max(group, config.micro_batch))
        settings = GRPOConfig(
            output_dir=str(out.with_name(f"{out.name}.parts")),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=config.rollouts // micro,
            num_generations=group,
            num_iterations=config.epochs,
            max_steps=config.updates * config.epochs,
            max_completion_length=config.max_new_tokens,
            learning_rate=float(config.learning_rate),
            lr_scheduler_type="linear",
            beta=float(config.kl_coefficient),
            epsilon=float(config.clip),
            temperature=float(config.temperature),
            gradient_checkpointing=False,
            bf16=False,
            save_strategy="no",
            logging_steps=1,
            report_to=list(report_to),
            seed=config.seed,
            disable_tqdm=not logger.isEnabledFor(logging.INFO),
            use_cpu=model.device.type == "cpu",
        )
        # Prompts stand for themselves by number: what is fed was tokenised once, as everywhere here.
        rows = Dataset.from_list([{"prompt": str(row)} for row in range(len(tokens))])
        stop = StopAtCollapse(rollouts)
        trainer = _trainer(
            adapted, settings, rows, rollouts, copy.deepcopy(model.tokenizer), [*callbacks, stop]
        )
        trainer.train()
        losses = [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]
        if not all(map(math.isfinite, losses)):
            raise ValueError("the loss is not a number; take a smaller learning rate, and check the rewards")
        adapted.eval()
        out.mkdir(parents=True, exist_ok=True)
        write_checkpoint(adapted, out, twin, train)
    return write_policy(out, key, rollouts.records, stop.collapsed)


class StopAtCollapse(TrainerCallback):
    """Stops the trainer at the first batch of rollouts that counts as collapsed."""

    def __init__(self, rollouts: "GroupRollouts") -> None:
        self.rollouts = rollouts
        self.collapsed: str | None = None
        """Why training was stopped; None while it was not."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 (Trainer's signature)
        """Ask to stop where the last batch has collapsed."""
        if self.collapsed is None:
            self.collapsed = collapse_of(self.rollouts.records, self.rollouts.config)
            if self.collapsed is not None:
                logger.warning("%s", self.collapsed)
                control.should_training_stop = True


class GroupRollouts:
    """The `rollout_func` of one run, and its reward function; keeps a record of every batch."""

    def __init__(
        self,
        model: ChatModel,
        live: LivePolicy,
        prompts: Any,
        references: Sequence[Sequence[int]],
        reward: RewardFunction,
        config: PolicyConfig,
        group: int,
    ) -> None:
        self.model, self.live, self.prompts, self.references = model, live, prompts, references
        self.reward, self.config, self.group = reward, config, group
        self.records: list[UpdateRecord] = []

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:  # noqa: ARG002 (TRL's signature)
        """Answers to the prompts, which stand there once for each member of their group."""
        config, number = self.config, len(self.records)
        rows = [int(prompt) for prompt in prompts]
        heads = rows[:: self.group]
        generator = torch.Generator().manual_seed(1_000_003 * config.seed + number)
        drawn = draw_resets([self.references[row] for row in heads], share=config.beta, generator=generator)
        policy = self.live.refreshed()
        rollouts = roll_out(
            policy,
            self.prompts.take(rows),
            [prefix for prefix in drawn for _ in range(self.group)],
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=int(torch.randint(2**31, (1,), generator=generator)),
        )
        scores = self.reward(rollouts.prompts, rollouts.answers).float().cpu()
        if config.missing_end_score is not None:
            scores = scores.masked_fill(~torch.tensor(rollouts.finished), float(config.missing_end_score))
        kl = sampled_kl(policy, self.model, rollouts, temperature=config.temperature)
        generated = rollouts.generated
        before = self.records[-1].tokens if self.records else 0
        self.records.append(
            UpdateRecord(
                update=number + 1,
                tokens=before + sum(map(len, rollouts.answers)),
                reward=float(scores.mean()),
                kl=kl.generated,
                forced_kl=kl.forced,
                entropy=math.nan,
                length=sum(generated) / len(generated),
                empty=empty_share(rollouts),
                finished=sum(rollouts.finished) / len(generated),
                reset_share=sum(n > 0 for n in rollouts.forced) / len(generated),
                policy_loss=math.nan,
                value_loss=math.nan,
                clip_share=math.nan,
                explained=math.nan,
            )
        )
        return {
            "prompt_ids": [list(ids) for ids in rollouts.prompts.ids],
            "completion_ids": [list(answer) for answer in rollouts.answers],
            "logprobs": None,
            "env_mask": [
                [0] * forced + [1] * (len(answer) - forced)
                for answer, forced in zip(rollouts.answers, rollouts.forced, strict=True)
            ],
            "scores": scores.tolist(),
        }


def score_of_rollout(scores: list[float | None], **_: Any) -> list[float | None]:
    """TRL's reward function: the scores that came with the rollouts."""
    return scores


def _trainer(
    adapted: Any,
    settings: Any,
    rows: Any,
    rollouts: GroupRollouts,
    tokenizer: Any,
    callbacks: Sequence[TrainerCallback],
) -> Any:
    from trl.trainer.grpo_trainer import GRPOTrainer

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*rollout_func.*")
        trainer = GRPOTrainer(
            model=adapted,
            reward_funcs=[score_of_rollout],
            args=settings,
            train_dataset=rows,
            processing_class=tokenizer,
            rollout_func=rollouts,
            callbacks=list(callbacks),
        )
    trainer.remove_callback(PrinterCallback)
    return trainer
