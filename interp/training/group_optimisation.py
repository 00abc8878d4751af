"""GRPO through TRL, with resets: the members of a group start from one cut of a reference answer.

    config = PolicyConfig(beta=1.0)
    done = optimise_groups(model, prompts, reward.score, out="runs/grpo", config=config, references=replies)

Rollouts are the engine's (`rollout_func` of `trl.GRPOTrainer`, which TRL calls experimental): a reset prefix is
returned as completion tokens with `env_mask` 0, which takes them out of the loss. All members of a group share the
prefix, or the group's mean would be no baseline. An adapter is trained, whose base is the reference of the KL.

Of `PolicyConfig` these count: beta, updates, rollouts, epochs (TRL's iterations), micro_batch, learning_rate,
kl_coefficient (TRL's beta, in the loss), clip, temperature, max_new_tokens, missing_end_score, rank, target_modules,
max_kl, max_empty, save_every, seed. A run that collapses stops and says so, by the rule of `optimise_policy`. A killed
run continues from its last saved state to the same weights.

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
from interp.storage.atomic_files import remove_folder
from interp.storage.locks import folder_lock, resolved
from interp.storage.paths import expanded
from interp.training.config import plain_adapter
from interp.training.policy_config import (
    OptimisedPolicy,
    PolicyConfig,
    RewardFunction,
    UpdateRecord,
    collapse_of,
)
from interp.training.policy_files import policy_key, read_policy, read_records, write_policy, write_records
from interp.training.policy_models import LivePolicy
from interp.training.reward_models import Replies, RewardModel, reply_ids
from interp.training.rollouts import draw_resets, empty_share, prompt_rows, roll_out, sampled_kl, scores_of
from interp.training.runner import train_to_the_end, trainable_module
from interp.training.saving import last_state, open_parts, parts_folder, write_checkpoint
from interp.training.trainer_states import TRAINER_ARGUMENTS, FiniteLoss, KeepStates

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
            or a score that is not a number.
        OSError: the disk is full.
    """
    config, out = PolicyConfig() if config is None else config, resolved(expanded(out))
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
    if len(given) != len(tokens):
        raise ValueError(f"got {len(given)} references for {len(tokens)} prompts; give one each")
    given = [ids[: config.max_new_tokens] for ids in given]
    key = f"grpo-{group}-{policy_key(model, tokens, given if config.beta else [], config, None)}"
    with folder_lock(out):
        if (done := read_policy(out, key)) is None:
            train = plain_adapter(rank=config.rank, target_modules=config.target_modules, seed=config.seed)
            torch.manual_seed(config.seed)
            twin = copy_with_weights(model, {})
            with trainable_module(twin, train, None) as adapted:
                live = LivePolicy(model, adapted)
                rollouts = GroupRollouts(model, live, tokens, given, reward, config, group)
                collapsed = _train(adapted, rollouts, open_parts(out, key), report_to, callbacks)
                adapted.eval()
                out.mkdir(parents=True, exist_ok=True)
                write_checkpoint(adapted, out, twin, train)
            done = write_policy(out, key, rollouts.records, collapsed)
        remove_folder(parts_folder(out))
    return done


def _train(
    adapted: Any,
    rollouts: "GroupRollouts",
    parts: Path,
    report_to: Sequence[str],
    callbacks: Sequence[TrainerCallback],
) -> str | None:
    """Run the updates that are left; why the run was stopped, or None."""
    from datasets import Dataset

    model, config = rollouts.model, rollouts.config
    # Prompts stand for themselves by number: what is fed was tokenised once, as everywhere here. All of the run stand
    # in their order, so that a run that continues skips those that were used.
    places = range(config.updates * config.rollouts // rollouts.group)
    order = prompt_rows(len(rollouts.prompts), places, seed=config.seed)
    stop = StopAtCollapse(rollouts)
    keep = KeepStates(
        config.save_every * config.epochs, lambda folder: write_records(folder, rollouts.records)
    )
    trainer = _trainer(
        adapted,
        _settings(config, rollouts.group, parts, report_to, on_cpu=model.device.type == "cpu"),
        Dataset.from_list([{"prompt": str(row)} for row in order]),
        rollouts,
        copy.deepcopy(model.tokenizer),
        [*callbacks, FiniteLoss(), stop, keep],
    )
    if (last := last_state(parts)) is not None:
        rollouts.records = read_records(last)
        logger.warning("continuing at update %d", len(rollouts.records))
    train_to_the_end(trainer, last, parts)
    return stop.collapsed


def _settings(
    config: PolicyConfig, group: int, parts: Path, report_to: Sequence[str], *, on_cpu: bool
) -> Any:
    """TRL's arguments."""
    from trl.trainer.grpo_config import GRPOConfig

    micro = math.gcd(config.rollouts, max(group, config.micro_batch))
    return GRPOConfig(
        **TRAINER_ARGUMENTS,
        output_dir=str(parts),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.rollouts // micro,
        num_generations=group,
        num_iterations=config.epochs,
        max_steps=config.updates * config.epochs,
        shuffle_dataset=False,
        max_completion_length=config.max_new_tokens,
        learning_rate=float(config.learning_rate),
        lr_scheduler_type="linear",
        beta=float(config.kl_coefficient),
        epsilon=float(config.clip),
        temperature=float(config.temperature),
        gradient_checkpointing=False,
        bf16=False,
        logging_steps=1,
        report_to=list(report_to),
        seed=config.seed,
        disable_tqdm=not logger.isEnabledFor(logging.INFO),
        use_cpu=on_cpu,
    )


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
        # TRL would leave answers whose reward is NaN out, and go on.
        scores = scores_of(rollouts, self.reward, missing_end_score=config.missing_end_score)
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
